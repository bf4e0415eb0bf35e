"""What each kernel computes, as tensor expressions, and its vector-Jacobian product.

A kernel here is mathematics without a layout: it runs as it is on any target, slowly, and is the
meaning that every rule in `schedules/` must keep. Its name and static parameters travel as the
attributes ``fabric.kernel`` and ``fabric.params`` of its PrimFunc, by which a rule finds it.
"""

from . import whole_tvm  # noqa: F401  before the others, which would have TVM import torch
from .attention import AttentionShape, attention
from .bitlinear import LinearGroup, bitlinear
from .bitlinear_vjp import bitlinear_vjp
from .cached_attention import cached_attention
from .decode_attention import decode_attention
from .dense import dense
from .dropout import dropout
from .embedding import embed
from .fused_bitlinear import Norm, fused_bitlinear
from .gated import gated_activation
from .grow_cache import grow_cache
from .head import head_loss, logits
from .heads import head_norm, no_rotation, positions, rotate_heads, windowed
from .kv_cache import KV_CACHES
from .moments import compressed_adamw, moment_type, update
from .norm import rms_norm
from .optimizer import accumulate, adamw, sum_squares
from .rope import rope_table

__all__ = [
    "KV_CACHES",
    "AttentionShape",
    "LinearGroup",
    "Norm",
    "accumulate",
    "adamw",
    "attention",
    "bitlinear",
    "bitlinear_vjp",
    "cached_attention",
    "compressed_adamw",
    "decode_attention",
    "dense",
    "dropout",
    "embed",
    "fused_bitlinear",
    "gated_activation",
    "grow_cache",
    "head_loss",
    "head_norm",
    "logits",
    "moment_type",
    "no_rotation",
    "positions",
    "rms_norm",
    "rope_table",
    "rotate_heads",
    "sum_squares",
    "update",
    "windowed",
]
