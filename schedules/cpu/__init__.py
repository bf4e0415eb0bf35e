"""Rules for processors."""

from ..rule import Rule
from . import (
    bitlinear,
    dropout,
    embedding,
    gated,
    norm,
    optimizer,
)
from .default import default

RULES: list[Rule] = [
    Rule("bitlinear", bitlinear.panels),
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
"""Tried in order; the last takes any kernel."""
