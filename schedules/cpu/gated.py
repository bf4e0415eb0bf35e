"""The gate of the feed-forward block, and its adjoint, a row at a time."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..gelu import gelu
from ..tir import Buffer, Expr, bind, build, load, shape, splat, store
from .isa import vector_lanes
from .loops import over, over_rows
from .vector_math import sigmoid


def _activation(kind: str, gate: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Return the activation of a vector and its derivative."""
    if kind == "silu":
        s = bind(sigmoid(gate))
        value = bind(gate * s)
        return value, s + value * (splat(1.0, lanes) - s)
    if kind == "gelu":
        return gelu(gate, sigmoid)
    positive = bind(T.max(gate, splat(0.0, lanes)))
    return positive * positive, positive + positive


def gated_activation(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``y[t, i] = act(gate_up[t, i]) * gate_up[t, I + i]``."""
    lanes, kind = vector_lanes(target), str(parameters["kind"])

    def body(gate_up: Buffer, y: Buffer) -> None:
        rows, half = shape(y)
        over_rows(rows, half, lambda t: gate_row(kind, lanes, gate_up, y, t))

    return build(function, body)


def gate_row(kind: str, lanes: int, gate_up: Buffer, y: Buffer, t: Expr) -> None:
    """Emit row t of ``y (T, I)`` from ``gate_up (T, 2 I)``."""
    half = shape(y)[1]

    def gate(i: Expr, n: int) -> None:
        value, _ = _activation(kind, bind(load(gate_up, t, i, lanes=n)), n)
        store(y, value * load(gate_up, t, half + i, lanes=n), t, i)

    over(half, lanes, gate)


def gated_activation_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the adjoints of both halves from one evaluation of the activation."""
    lanes, kind = vector_lanes(target), str(parameters["kind"])

    def body(dy: Buffer, gate_up: Buffer, adjoint: Buffer) -> None:
        rows, half = shape(dy)

        def row(t: Expr) -> None:
            def gate(i: Expr, n: int) -> None:
                value, slope = _activation(kind, bind(load(gate_up, t, i, lanes=n)), n)
                outer = bind(load(dy, t, i, lanes=n))
                store(adjoint, outer * slope * load(gate_up, t, half + i, lanes=n), t, i)
                store(adjoint, outer * value, t, half + i)

            over(half, lanes, gate)

        over_rows(rows, half, row)

    return build(function, body)
