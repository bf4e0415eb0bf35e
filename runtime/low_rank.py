"""A LoRA adapter as it is on disk, whatever the format: factors, scale, where it is from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..targets import FabricError
from .protocols import Tensors

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MODULES = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
_NAME = re.compile(r"model\.layers\.(\d{1,4})\.(self_attn|mlp)\.(\w+_proj)\.lora_([AB])")


class AdapterError(FabricError):
    """An adapter cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class LowRank:
    """An adapter's factors and all that is known about them.

    Parameters
    ----------
    path : Path
        Where it was read.
    tensors : dict of str to numpy.ndarray
        ``model.layers.0.self_attn.q_proj.lora_A`` float32 [rank, in] and ``….lora_B`` float32
        [out, rank], for the modules that the adapter changes.
    rank : int
    alpha : float
    rslora : bool
        Whether the scale is ``alpha / sqrt(rank)`` (rsLoRA, arXiv 2312.03732) and not
        ``alpha / rank``.
    dropout : float
        Of its training.
    base : str
        Name of the model that it was trained on; "" where unknown.
    provenance : str
        JSON about its training; "" where unknown.
    """

    path: Path
    tensors: Tensors
    rank: int
    alpha: float
    rslora: bool = False
    dropout: float = 0.0
    base: str = ""
    provenance: str = ""

    @property
    def scale(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def places(self) -> list[tuple[int, str]]:
        """Layer and module of every pair of factors, in the model's order."""
        found = {split_name(name) for name in self.tensors}
        return sorted(((n, m) for n, m, _ in found), key=lambda p: (p[0], MODULES.index(p[1])))[::2]

    @property
    def modules(self) -> list[str]:
        """Modules that it changes in at least one layer."""
        changed = {module for _, module in self.places}
        return [module for module in MODULES if module in changed]

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return sum(tensor.size for tensor in self.tensors.values())

    def check(self) -> LowRank:
        """Refuse an adapter whose factors contradict each other; give back the others.

        Raises
        ------
        AdapterError
            Naming the first tensor that cannot be.
        """
        for name, tensor in self.tensors.items():
            try:
                layer, module, factor = split_name(name)
            except ValueError:
                raise AdapterError(
                    f"{self.path} changes {name}, which is none of a layer's linear modules.",
                    f"Use an adapter of these modules only: {', '.join(MODULES)}.",
                ) from None
            other = tensor_name(layer, module, "B" if factor == "A" else "A")
            if other not in self.tensors:
                raise AdapterError(f"{self.path} has {name} but no {other}.", "Restore the file.")
            rank = tensor.shape[0 if factor == "A" else -1] if tensor.ndim == 2 else None
            if rank != self.rank:
                raise AdapterError(
                    f"{name} in {self.path} has the shape {list(tensor.shape)}, which is not of "
                    f"the adapter's rank {self.rank}.",
                    "Use an adapter with the same rank everywhere.",
                )
            if not np.isfinite(tensor).all():
                raise AdapterError(
                    f"{name} in {self.path} holds NaN or infinity.", "Train the adapter again."
                )
        if not self.tensors:
            raise AdapterError(f"{self.path} changes no module at all.", "Use another adapter.")
        if not math.isfinite(self.scale):
            raise AdapterError(f"{self.path} has the alpha {self.alpha}.", "Use another adapter.")
        return self

    def require_fit(self, shapes: Mapping[str, tuple[int, int]], missing: str) -> None:
        """Refuse an adapter whose modules or shapes are not among those of a model.

        Parameters
        ----------
        shapes : mapping of str to (int, int)
            Of every tensor that the model has a place for (`adapter_shapes`).
        missing : str
            What to do where the model has no place for one.

        Raises
        ------
        AdapterError
            Naming the first tensor that does not fit.
        """
        for name, tensor in self.tensors.items():
            if name not in shapes:
                raise AdapterError(
                    f"The adapter in {self.path} changes {name}, which the model has no place for.",
                    missing,
                )
            if tensor.shape != shapes[name]:
                raise AdapterError(
                    f"{name} in {self.path} has the shape {list(tensor.shape)}, and the model "
                    f"needs {list(shapes[name])}.",
                    "Use an adapter that was trained on this model.",
                )


def tensor_name(layer: int, module: str, factor: str) -> str:
    """Give the name of a factor, "A" or "B", as the engines know it."""
    part = "self_attn" if module in ATTENTION else "mlp"
    return f"model.layers.{layer}.{part}.{module}.lora_{factor}"


def split_name(name: str) -> tuple[int, str, str]:
    """Undo `tensor_name`: layer, module and factor.

    Raises
    ------
    ValueError
        Where the name is no factor of one of a layer's modules.
    """
    match = _NAME.fullmatch(name)
    if match is None or tensor_name(int(match[1]), match[3], match[4]) != name:
        raise ValueError(name)
    if match[3] not in MODULES:
        raise ValueError(name)
    return int(match[1]), match[3], match[4]


def adapter_shapes(
    config: Mapping[str, Any], rank: int, modules: tuple[str, ...] | list[str] = MODULES
) -> dict[str, tuple[int, int]]:
    """Give the shape of every tensor of an adapter, by the engine's names, in their order.

    Parameters
    ----------
    config : mapping
        The model's configuration, as in a bundle's manifest.
    rank : int
    modules : sequence of str
        Those that the adapter changes.
    """
    hidden, ffn = int(config["hidden_size"]), int(config["intermediate_size"])
    attention = int(config["num_heads"]) * int(config["head_dim"])
    kv = int(config["num_kv_heads"]) * int(config["head_dim"])
    sizes = {
        "q_proj": (attention, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, attention),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }
    shapes = {}
    for layer in range(int(config["num_layers"])):
        for module in modules:
            outputs, inputs = sizes[module]
            shapes[tensor_name(layer, module, "A")] = (rank, inputs)
            shapes[tensor_name(layer, module, "B")] = (outputs, rank)
    return shapes
