"""What the architectures of GGUF call a model's tensors, and how they order the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..config import MODULES, ModelConfig

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"

Scalar = TypeVar("Scalar", bound=np.generic)

_MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_NORMS = {
    "input_norm": "attn_norm",
    "post_attention_norm": "ffn_norm",
    "attention_sub_norm": "attn_sub_norm",
    "ffn_sub_norm": "ffn_sub_norm",
}


@dataclass(frozen=True)
class Architecture:
    """One value of ``general.architecture``.

    Parameters
    ----------
    name : str
        The value; also the prefix of the model's keys.
    sub_norms : bool
        Whether norms stand before the output projections.
    activation : str
        The gate's, where the file has no ``hidden_activation``.
    fixed_activation : bool
        Whether programs compute that activation whatever the file says.
    permuted : bool
        Whether the rows of q and k are ordered for rotary positions of neighbouring pairs.
    separate_head : bool
        Whether programs look for a head of its own.
    """

    name: str
    sub_norms: bool
    activation: str
    fixed_activation: bool
    permuted: bool
    separate_head: bool


ARCHITECTURES = {
    entry.name: entry
    for entry in (
        # llama.cpp; the gate is SiLU unless the key hidden_activation says relu2.
        Architecture("bitnet", True, "silu", False, False, False),
        # bitnet.cpp and ik_llama.cpp, for 2B-4T: the same tensors and always relu2.
        Architecture("bitnet-b1.58", True, "relu2", True, False, True),
        Architecture("bitnet-25", True, "relu2", True, False, True),
        Architecture("llama", False, "silu", True, True, True),
    )
}


def module_tensor(layer: int, module: str) -> str:
    """Give the tensor of a BitLinear's weight; `module` is one of `MODULES`."""
    return f"blk.{layer}.{_MODULES[module]}.weight"


def scale_tensor(layer: int, module: str) -> str:
    """Give the tensor that multiplies a BitLinear's output, where a file has it."""
    return f"blk.{layer}.{_MODULES[module]}.scale"


def norm_tensor(name: str) -> str:
    """Give the tensor of a norm by its name in `ModelConfig.norm_shapes`."""
    if name == "final_norm":
        return "output_norm.weight"
    _, layer, norm = name.split(".")
    return f"blk.{layer}.{_NORMS[norm]}.weight"


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Give every tensor that a file must hold, with its shape, in the order of the model."""
    table = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: table}
    if not config.tied_head:
        shapes[HEAD] = table
    for layer in range(config.num_layers):
        for module in MODULES:
            shapes[module_tensor(layer, module)] = config.module_shape(module)
    norms = config.norm_shapes().items()
    return {**shapes, **{norm_tensor(name): (size,) for name, size in norms}}


def heads_of(config: ModelConfig, module: str) -> int:
    """Give the number of heads whose rows are permuted together, 0 for the other modules."""
    return {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(module, 0)


def permute(rows: npt.NDArray[Scalar], heads: int) -> npt.NDArray[Scalar]:
    """Order a head's rows 0, d/2, 1, d/2 + 1, ... for rotary positions of neighbouring pairs.

    `rows` is [heads * d, ...] in the order of the two halves that Hugging Face has.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows: npt.NDArray[Scalar], heads: int) -> npt.NDArray[Scalar]:
    """Undo `permute`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
