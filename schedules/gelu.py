"""GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415), by a target's sigmoid.

``0.5 x (1 + tanh(u))`` with ``u = sqrt(2 / pi) (x + 0.044715 x^3)`` is ``x sigmoid(2 u)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .tir import Expr, bind, lanes_of, splat

CUBE, SLOPE = 0.044715, 2.0 * math.sqrt(2.0 / math.pi)


def gelu(gate: Expr, sigmoid: Callable[[Expr], Expr]) -> tuple[Expr, Expr]:
    """Return the activation of float32 lanes and its derivative."""

    def constant(value: float) -> Expr:
        return splat(value, lanes_of(gate))

    cube = bind(constant(CUBE) * gate * gate)
    s = bind(sigmoid(constant(SLOPE) * gate * (constant(1.0) + cube)))
    value = bind(gate * s)
    inner = constant(SLOPE) * (constant(1.0) + constant(3.0) * cube)
    return value, s + value * (constant(1.0) - s) * inner
