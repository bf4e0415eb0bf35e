"""Rules for processors."""

from ..rule import Rule
from . import (
    append_kv,
    attention,
    attention_vjp,
    bitlinear,
    bitlinear_vjp,
    cached_attention,
    decode_attention,
    dense,
    dropout,
    embedding,
    gated,
    head_loss,
    logits,
    moments,
    norm,
    optimizer,
)
from .default import default

RULES: list[Rule] = [
    Rule("bitlinear", bitlinear.panels),
    Rule("fused_bitlinear", bitlinear.panels),
    Rule("bitlinear_vjp", bitlinear_vjp.panels),
    Rule("dense", dense.products),
    Rule("dense_vjp", dense.products_vjp),
    Rule("logits", logits.by_rows),
    Rule("head_loss", head_loss.chunks),
    Rule("head_loss_forward", head_loss.chunks),
    Rule("rms_norm", norm.rms_norm),
    Rule("rms_norm_vjp", norm.rms_norm_vjp),
    Rule("gated_activation", gated.gated_activation),
    Rule("gated_activation_vjp", gated.gated_activation_vjp),
    Rule("embed", embedding.embed),
    Rule("dropout", dropout.dropout),
    Rule("accumulate", optimizer.accumulate),
    Rule("sum_squares", optimizer.sum_squares),
    Rule("adamw", optimizer.adamw),
    Rule("compressed_adamw", moments.adamw),
    Rule("attention", attention.attention),
    Rule("attention_vjp", attention_vjp.attention_vjp),
    Rule("append_kv", append_kv.append_kv),
    Rule("cached_attention", cached_attention.cached_attention),
    Rule("decode_attention", decode_attention.decode_attention),
    Rule("*", default),
]
"""Tried in order; the last takes any kernel."""
