"""The gate of the feed-forward block, and its adjoint."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..gelu import gelu
from ..tir import Buffer, Expr, bind, shape
from .elements import constant, has_static_columns, load, over_rows, store
from .kernel import Gpu, build


def activation(kind: str, gate: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Return the activation of a vector and its derivative."""
    one = constant(1.0, lanes)

    def sigmoid(x: Expr) -> Expr:
        return one / (one + T.exp(constant(0.0, lanes) - x))

    if kind == "silu":
        s = bind(sigmoid(gate))
        value = bind(gate * s)
        return value, s + value * (one - s)
    if kind == "gelu":
        return gelu(gate, sigmoid)
    positive = bind(T.max(gate, constant(0.0, lanes)))
    return positive * positive, positive + positive


def gated_activation(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``y[t, i] = act(gate_up[t, i]) * gate_up[t, I + i]``."""
    gpu, kind = Gpu(target), str(parameters["kind"])

    def body(gate_up: Buffer, y: Buffer) -> None:
        rows, half = shape(y)

        def gate(t: Expr, i: Expr, lanes: int) -> None:
            value, _ = activation(kind, bind(load(gate_up, t, i, lanes=lanes)), lanes)
            store(y, value * load(gate_up, t, i + half, lanes=lanes), t, i)

        over_rows(gpu, rows, half, gate)

    return build(function, body) if has_static_columns(function, 1) else None


def gated_activation_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the adjoints of both halves from one evaluation of the activation."""
    gpu, kind = Gpu(target), str(parameters["kind"])

    def body(dy: Buffer, gate_up: Buffer, adjoint: Buffer) -> None:
        rows, half = shape(dy)

        def gate(t: Expr, i: Expr, lanes: int) -> None:
            value, slope = activation(kind, bind(load(gate_up, t, i, lanes=lanes)), lanes)
            outer = bind(load(dy, t, i, lanes=lanes))
            store(adjoint, outer * slope * load(gate_up, t, i + half, lanes=lanes), t, i)
            store(adjoint, outer * value, t, i + half)

        over_rows(gpu, rows, half, gate)

    return build(function, body) if has_static_columns(function, 0) else None
