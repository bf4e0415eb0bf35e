"""LoRA (Hu et al. 2021, arXiv 2106.09685): its options, and where each factor lives.

The adapter of one layer is one flat float32 buffer, so that its gradient and moments are too. In
it, group by group, stand ``A (S, r, K)`` and ``B (r, N)`` over the S adapted projections of the
group and their N rows, each at a place where a device lets a buffer begin. PEFT's ``lora_A (r,
K)`` of a projection is its block of A; ``lora_B (rows, r)`` is the transpose of its columns of B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..targets import FabricError
from .config import ATTENTION_MODULES, MODULES, ModelConfig
from .kernels import LinearGroup
from .packing import DENSE, TWO_BIT

GROUPS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""Projections that share an input, in row order."""


@dataclass(frozen=True)
class LoraOptions:
    """What is trained.

    Attributes
    ----------
    rank : int
        r, columns of the low-rank factors.
    alpha : float
        The adapter is scaled by ``alpha / r``.
    modules : tuple of str
        Projections that carry an adapter.
    dropout : float
        Probability of dropping an element of an adapter's input in training.
    rslora : bool
        Scale by ``alpha / sqrt(r)`` instead (Kalajdzievski 2023, arXiv 2312.03732).
    """

    rank: int = 8
    alpha: float = 16.0
    modules: tuple[str, ...] = MODULES
    dropout: float = 0.0
    rslora: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.modules if name not in MODULES]
        if unknown or not self.modules:
            raise FabricError(
                f"LoRA can't be attached to {unknown[0]!r}."
                if unknown
                else "No module was named for LoRA.",
                f"Name one or more of: {', '.join(MODULES)}.",
            )
        if not 1 <= self.rank <= 1024:
            raise FabricError(f"A LoRA rank of {self.rank} is out of range.", "Use 1 to 1024.")
        if not 0.0 <= self.dropout < 1.0:
            raise FabricError(
                f"A LoRA dropout of {self.dropout} is out of range.", "Use 0 or more, below 1."
            )

    @property
    def scale(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def linear_groups(
    config: ModelConfig, modules: tuple[str, ...], packing: str = TWO_BIT.name
) -> list[LinearGroup]:
    """Return the four groups of projections of a layer, in a packing; a dense model has none."""
    groups = []
    for name, members in GROUPS.items():
        shapes = [config.module_shape(module) for module in members]
        groups.append(
            LinearGroup(
                name=name,
                modules=members,
                inputs=shapes[0][1],
                outputs=tuple(rows for rows, _ in shapes),
                adapted=tuple(module in modules for module in members),
                packing=DENSE if config.dense else packing,
            )
        )
    return groups


ALIGNMENT = 128
"""Elements: a factor begins at a multiple of 512 bytes, which every OpenCL device accepts."""


@dataclass(frozen=True)
class AdapterFactor:
    """One factor of a group's adapter in the layer's flat buffer."""

    group: str
    factor: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of float32 elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class AdapterModule:
    """One projection's adapter: where its A block and its columns of B start in the buffer."""

    path: str
    rows: int
    inputs: int
    a_offset: int
    b_offset: int
    b_stride: int


@dataclass(frozen=True)
class AdapterLayout:
    """The flat adapter buffer of one layer: `size` float32 elements, the gaps among them zeros."""

    rank: int
    size: int
    factors: tuple[AdapterFactor, ...]
    modules: tuple[AdapterModule, ...]

    @property
    def parameters(self) -> int:
        """Number of trained parameters of a layer."""
        return sum(factor.size for factor in self.factors)


def module_path(module: str) -> str:
    """Return a projection's path inside its layer, as Hugging Face names it."""
    return f"{'self_attn' if module in ATTENTION_MODULES else 'mlp'}.{module}"


def adapter_layout(config: ModelConfig, options: LoraOptions) -> AdapterLayout:
    """Lay out the adapter of one layer."""
    factors: list[AdapterFactor] = []
    modules: list[AdapterModule] = []
    offset = 0
    for group in linear_groups(config, options.modules):
        if not group.adapters:
            continue
        a = AdapterFactor(group.name, "a", (group.adapters, options.rank, group.inputs), offset)
        b_offset = _next_place(offset + a.size)
        b = AdapterFactor(group.name, "b", (options.rank, group.adapted_rows), b_offset)
        factors += [a, b]
        offset = _next_place(b.offset + b.size)
        index = column = 0
        for name, rows, adapted in zip(group.modules, group.outputs, group.adapted, strict=True):
            if adapted:
                modules.append(
                    AdapterModule(
                        path=module_path(name),
                        rows=rows,
                        inputs=group.inputs,
                        a_offset=a.offset + index * options.rank * group.inputs,
                        b_offset=b.offset + column,
                        b_stride=group.adapted_rows,
                    )
                )
                index, column = index + 1, column + rows
    return AdapterLayout(options.rank, offset, tuple(factors), tuple(modules))


def _next_place(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
