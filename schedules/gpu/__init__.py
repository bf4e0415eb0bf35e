"""Rules for graphics processors."""

from ..rule import Rule
from . import (
    append_kv,
    attention,
    attention_vjp,
    bitlinear,
    bitlinear_vjp,
    cached_attention,
    decode_attention,
    dropout,
    embedding,
    gated,
    head_loss,
    head_units,
    logits,
    norm,
    optimizer,
    straight_matrix,
    ternary_matrix,
)
from .default import default

RULES: list[Rule] = [
    Rule("bitlinear", bitlinear.few_tokens),
    Rule("bitlinear", ternary_matrix.tiles),
    Rule("bitlinear", bitlinear.tiles),
    Rule("fused_bitlinear", bitlinear.few_tokens),
    Rule("bitlinear_vjp", straight_matrix.units),
    Rule("bitlinear_vjp", bitlinear_vjp.tiles),
    Rule("logits", logits.by_rows),
    Rule("head_loss", head_units.units),
    Rule("head_loss_forward", head_units.units),
    Rule("head_loss", head_loss.chunks),
    Rule("head_loss_forward", head_loss.chunks),
    Rule("attention", attention.attention),
    Rule("attention_vjp", attention_vjp.attention_vjp),
    Rule("append_kv", append_kv.append_kv),
    Rule("cached_attention", cached_attention.cached_attention),
    Rule("decode_attention", decode_attention.decode_attention),
    Rule("rms_norm", norm.rms_norm),
    Rule("rms_norm_vjp", norm.rms_norm_vjp),
    Rule("gated_activation", gated.gated_activation),
    Rule("gated_activation_vjp", gated.gated_activation_vjp),
    Rule("embed", embedding.embed),
    Rule("dropout", dropout.dropout),
    Rule("accumulate", optimizer.accumulate),
    Rule("sum_squares", optimizer.sum_squares),
    Rule("adamw", optimizer.adamw),
    Rule("*", default),
]
"""Tried in order; the last takes elementwise programs and reductions of any kernel."""
