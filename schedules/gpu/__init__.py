"""Rules for graphics processors."""

from ..rule import Rule
from . import norm

RULES: list[Rule] = [
    Rule("rms_norm", norm.rms_norm),
    Rule("rms_norm_vjp", norm.rms_norm_vjp),
]
"""Tried in order."""
