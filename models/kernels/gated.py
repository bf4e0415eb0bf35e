"""The gate of the feed-forward block: ``act(gate) * up`` on one fused ``(T, 2 I)`` input."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import relax, te, tirx

from .emit import Parameters, emit, emit_differentiable, register_adjoint
from .norm import Norm, norm_adjoint

GELU_CUBE = 0.044715
GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
"""Of GELU's tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415), ``0.5 x (1 + tanh(u))``: that
is ``x sigmoid(2 u)`` with ``2 u = GELU_SLOPE (x + GELU_CUBE x^3)``."""


def _sigmoid(x: tirx.PrimExpr) -> tirx.PrimExpr:
    return 1.0 / (1.0 + tirx.exp(-x))


def _activation(kind: str, x: tirx.PrimExpr) -> tirx.PrimExpr:
    if kind == "silu":
        return x * _sigmoid(x)
    if kind == "gelu":
        return x * _sigmoid(GELU_SLOPE * (x + GELU_CUBE * x * x * x))
    positive = tirx.max(x, tirx.const(0.0, "float32"))
    return positive * positive


def _derivative(kind: str, x: tirx.PrimExpr) -> tirx.PrimExpr:
    if kind == "silu":
        return _sigmoid(x) * (1.0 + x * (1.0 - _sigmoid(x)))
    if kind == "gelu":
        s = _sigmoid(GELU_SLOPE * (x + GELU_CUBE * x * x * x))
        return s + x * s * (1.0 - s) * GELU_SLOPE * (1.0 + 3.0 * GELU_CUBE * x * x)
    return 2.0 * tirx.max(x, tirx.const(0.0, "float32"))


def gated(gate_up: te.Tensor, kind: str) -> te.Tensor:
    """Return ``(T, I)``, the activation of one half of ``(T, 2 I)`` times the other half."""
    rows, width = gate_up.shape
    half = width // 2
    return te.compute(
        (rows, half),
        lambda t, i: _activation(kind, gate_up[t, i]) * gate_up[t, half + i],
        "gated_activation",
    )


def gated_activation(bb: relax.BlockBuilder, gate_up: relax.Expr, kind: str) -> relax.Var:
    """Emit ``y[t, i] = act(gate_up[t, i]) * gate_up[t, I + i]``.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    gate_up : relax.Expr
        ``(T, 2 I)`` float32, the gate's half first.
    kind : str
        ``"silu"`` (x sigmoid(x)), ``"relu2"`` (max(x, 0)^2) or ``"gelu"`` (its tanh form).

    Returns
    -------
    relax.Var
        ``(T, I)`` float32.
    """

    def compute(gate_up: te.Tensor) -> te.Tensor:
        return gated(gate_up, kind)

    return emit_differentiable(bb, "gated_activation", compute, [gate_up], {"kind": kind})


def gated_activation_vjp(
    bb: relax.BlockBuilder, dy: relax.Expr, gate_up: relax.Expr, kind: str
) -> relax.Var:
    """Emit the ``(T, 2 I)`` adjoint of `gate_up` for the ``(T, I)`` adjoint `dy`."""

    def compute(dy: te.Tensor, gate_up: te.Tensor) -> te.Tensor:
        return _adjoints(dy, gate_up, kind)

    return emit(bb, "gated_activation_vjp", compute, [dy, gate_up], {"kind": kind})


def gated_norm_vjp(
    bb: relax.BlockBuilder, dy: relax.Expr, gate_up: relax.Expr, norm: Norm, kind: str
) -> relax.Var:
    """Emit the same for the ``(T, I)`` adjoint of what comes after a norm of the gate's result."""

    def compute(dy: te.Tensor, gate_up: te.Tensor, weight: te.Tensor) -> te.Tensor:
        inner = norm_adjoint(dy, gated(gate_up, kind), weight, norm.epsilon)
        return _adjoints(inner, gate_up, kind)

    parameters = {"kind": kind, "epsilon": norm.epsilon}
    return emit(bb, "gated_norm_vjp", compute, [dy, gate_up, norm.weight], parameters)


def _adjoints(dy: te.Tensor, gate_up: te.Tensor, kind: str) -> te.Tensor:
    """Return the adjoints of both halves."""
    half = dy.shape[1]

    def adjoint(t: tirx.Var, j: tirx.Var) -> tirx.PrimExpr:
        i = tirx.if_then_else(j < half, j, j - half)
        gate, up = gate_up[t, i], gate_up[t, half + i]
        return dy[t, i] * tirx.if_then_else(
            j < half, _derivative(kind, gate) * up, _activation(kind, gate)
        )

    return te.compute(gate_up.shape, adjoint, "gated_activation_vjp")


@register_adjoint("gated_activation")
def _adjoint(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    return [gated_activation_vjp(bb, dy, arguments[0], str(parameters["kind"]))]
