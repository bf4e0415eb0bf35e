"""Root-mean-square normalisation: a row at a time, passes over it while it is in the cache."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, build, load, shape, splat, static, store
from .isa import vector_lanes
from .loops import over, over_rows, sum_over


def _inverse_rms(x: Buffer, row: Expr, columns: int, epsilon: float, lanes: int) -> Expr:
    def square(i: Expr, n: int) -> Expr:
        return load(x, row, i, lanes=n) * load(x, row, i, lanes=n)

    mean = sum_over(columns, lanes, square) / T.float32(columns)
    return bind(T.float32(1.0) / T.sqrt(mean + T.float32(epsilon)))


def rms_norm(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``y = x / rms(x) * weight``."""
    lanes, epsilon = vector_lanes(target), float(parameters["epsilon"])

    def body(x: Buffer, weight: Buffer, y: Buffer) -> None:
        rows, columns = shape(x)
        over_rows(rows, columns, lambda t: norm_row(lanes, epsilon, x, weight, y, t))

    return None if static(function.params[0].shape[1]) is None else build(function, body)


def norm_row(lanes: int, epsilon: float, x: Buffer, weight: Buffer, y: Buffer, t: Expr) -> None:
    """Emit row t of y, which may be x itself."""
    columns = shape(y)[1]
    inverse = _inverse_rms(x, t, columns, epsilon, lanes)

    def scale(i: Expr, n: int) -> None:
        value = load(x, t, i, lanes=n) * splat(inverse, n) * load(weight, i, lanes=n)
        store(y, value, t, i)

    over(columns, lanes, scale)


def rms_norm_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``dx = r (w dy - x r^2 mean(w dy x))`` with ``r = 1 / rms(x)``."""
    lanes, epsilon = vector_lanes(target), float(parameters["epsilon"])

    def body(dy: Buffer, x: Buffer, weight: Buffer, dx: Buffer) -> None:
        rows, columns = shape(x)

        def row(t: Expr) -> None:
            def weighted(i: Expr, n: int) -> Expr:
                return load(dy, t, i, lanes=n) * load(weight, i, lanes=n)

            inverse = _inverse_rms(x, t, columns, epsilon, lanes)
            dot = sum_over(columns, lanes, lambda i, n: weighted(i, n) * load(x, t, i, lanes=n))
            along = bind(dot * inverse * inverse / T.float32(columns))

            def project(i: Expr, n: int) -> None:
                across = weighted(i, n) - load(x, t, i, lanes=n) * splat(along, n)
                store(dx, splat(inverse, n) * across, t, i)

            over(columns, lanes, project)

        over_rows(rows, columns, row)

    return None if static(function.params[1].shape[1]) is None else build(function, body)
