"""One decoder layer, its tensors, and the two ends of the model, as Relax emitters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import relax, tirx

from ..config import ModelConfig
from ..kernels import AttentionShape, LinearGroup, embed, rms_norm
from ..lora import linear_groups
from ..packing import PACKINGS, TWO_BIT, packed_shape
from .projections import Projections

Dimension = int | tirx.Var
Attention = Callable[[relax.Var], relax.Var]


@dataclass(frozen=True)
class TensorSpec:
    """A frozen tensor of the model as the compiled functions take it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def type(self) -> relax.TensorType:
        """The Relax type."""
        return relax.TensorType(self.shape, self.dtype)


@dataclass(frozen=True)
class HeadFormat:
    """How embedding and head are stored: ``"f16"``, or ``"int8"`` with a float32 scale a row."""

    dtype: str

    @property
    def scaled(self) -> bool:
        """Whether a scale tensor stands beside the table."""
        return self.dtype == "int8"

    def tensors(self, name: str, rows: int, columns: int) -> list[TensorSpec]:
        """Return the specs of a table and its scale."""
        table = "int8" if self.scaled else "float16"
        specs = [TensorSpec(name, (rows, columns), table)]
        if self.scaled:
            specs.append(TensorSpec(f"{name}_scale", (rows,), "float32"))
        return specs


@dataclass(frozen=True)
class Formats:
    """How what a model and its training keep in memory is stored.

    Attributes
    ----------
    head : HeadFormat
        Embedding and head.
    packing : str
        The ternary matrices, see `models/packing.py`.
    moments : str
        AdamW's, see `models/kernels/moments.py`.
    kv_cache : str
        The cache of keys and values, see `models/kernels/kv_cache.py`.
    """

    head: HeadFormat
    packing: str = TWO_BIT.name
    moments: str = "f32"
    kv_cache: str = "f32"


def attention_shape(config: ModelConfig) -> AttentionShape:
    """Return the heads of a model."""
    return AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim)


def layer_tensors(config: ModelConfig, packing: str) -> list[TensorSpec]:
    """Return the frozen tensors of one layer, in the order in which the functions take them."""
    groups = {group.name: group for group in linear_groups(config, (), packing)}

    form = PACKINGS[packing]

    def linear(group: LinearGroup) -> list[TensorSpec]:
        return [
            TensorSpec(group.name, packed_shape(group.rows, group.inputs, form), "int32"),
            TensorSpec(f"{group.name}_scale", (len(group.outputs),), "float32"),
        ]

    specs = [TensorSpec("input_norm", (config.hidden_size,), "float32"), *linear(groups["qkv"])]
    if config.attention_sub_norm:
        width = config.num_heads * config.head_dim
        specs.append(TensorSpec("attention_sub_norm", (width,), "float32"))
    specs += linear(groups["o"])
    specs.append(TensorSpec("post_attention_norm", (config.hidden_size,), "float32"))
    specs += linear(groups["gate_up"])
    if config.ffn_sub_norm:
        specs.append(TensorSpec("ffn_sub_norm", (config.intermediate_size,), "float32"))
    return specs + linear(groups["down"])


def head_tensors(config: ModelConfig, head: HeadFormat) -> list[TensorSpec]:
    """Return the tensors outside the layers: embedding, final norm, and the head if not tied."""
    size = (config.vocab_size, config.hidden_size)
    specs = head.tensors("embedding", *size)
    specs.append(TensorSpec("final_norm", (config.hidden_size,), "float32"))
    return specs if config.tied_head else specs + head.tensors("head", *size)


def decoder_layer(project: Projections, x: relax.Expr, attend: Attention) -> relax.Var:
    """Emit one decoder layer.

    Parameters
    ----------
    project : Projections
        Emits the layer's projections.
    x : relax.Expr
        ``(T, H)`` float32, the residual stream.
    attend : callable
        Emits attention for the fused ``(T, (Hq + 2 Hkv) D)`` queries, keys and values.

    Returns
    -------
    relax.Var
        ``(T, H)`` float32.
    """
    mixed = attend(project("qkv", x, norm="input_norm"))
    x = project("o", mixed, norm="attention_sub_norm", residual=x)
    gate_up = project("gate_up", x, norm="post_attention_norm")
    return project("down", gate_up, norm="ffn_sub_norm", gated=True, residual=x)


class Ends:
    """The tensors outside the layers, as variables of a function: embedding, norm and head."""

    def __init__(self, config: ModelConfig, head: HeadFormat) -> None:
        self.config, self.format = config, head
        self.specs = head_tensors(config, head)
        self.variables = {spec.name: relax.Var(spec.name, spec.type) for spec in self.specs}

    @property
    def parameters(self) -> list[relax.Var]:
        """The variables, in the order of :func:`head_tensors`."""
        return list(self.variables.values())

    def embed(self, bb: relax.BlockBuilder, tokens: relax.Expr) -> relax.Var:
        """Emit the ``(T, H)`` float32 embedding of ``(T,)`` int32 tokens."""
        return embed(bb, tokens, *self._table("embedding"))

    def normalised(self, bb: relax.BlockBuilder, x: relax.Expr) -> relax.Var:
        """Emit the final norm of ``(T, H)`` float32."""
        return rms_norm(bb, x, self.variables["final_norm"], self.config.rms_norm_eps)

    @property
    def head(self) -> tuple[relax.Var, relax.Var | None]:
        """The head's table and its scale."""
        return self._table("embedding" if self.config.tied_head else "head")

    def _table(self, name: str) -> tuple[relax.Var, relax.Var | None]:
        return self.variables[name], self.variables.get(f"{name}_scale")


def tuple_items(
    bb: relax.BlockBuilder, value: relax.Expr, names: Sequence[str]
) -> dict[str, relax.Expr]:
    """Emit the fields of a tuple, by name."""
    return {name: bb.emit(relax.TupleGetItem(value, i)) for i, name in enumerate(names)}
