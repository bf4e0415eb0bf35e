"""Root-mean-square normalisation: a work-group for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, shape, static
from .kernel import Gpu, block_sum, build, launch, registers, strided


def _row_sum(gpu: Gpu, thread: Expr, columns: int, term: Callable[[Expr], Expr]) -> Expr:
    """Return the sum of ``term(column)`` over a row that a work-group shares."""
    total = registers([1])
    T.buffer_store(total, T.float32(0.0), [0])

    def add(i: Expr) -> None:
        T.buffer_store(total, total[0] + term(i), [0])

    strided(columns, gpu.threads, thread, add)
    return block_sum(gpu.threads, thread, total[0])


def _inverse_rms(
    gpu: Gpu, thread: Expr, x: Buffer, row: Expr, columns: int, epsilon: float
) -> Expr:
    total = _row_sum(gpu, thread, columns, lambda i: x[row, i] * x[row, i])
    return bind(T.float32(1.0) / T.sqrt(total / T.float32(columns) + T.float32(epsilon)))


def rms_norm(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``y = x / rms(x) * weight``."""
    gpu, epsilon = Gpu(target), float(parameters["epsilon"])

    def body(x: Buffer, weight: Buffer, y: Buffer) -> None:
        rows, columns = shape(x)
        with launch([rows], [gpu.threads]) as (row, thread):
            inverse = _inverse_rms(gpu, thread, x, row, columns, epsilon)

            def scale(i: Expr) -> None:
                T.buffer_store(y, x[row, i] * inverse * weight[i], [row, i])

            strided(columns, gpu.threads, thread, scale)

    return None if static(function.params[0].shape[1]) is None else build(function, body)


def rms_norm_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``dx = r (w dy - x r^2 mean(w dy x))`` with ``r = 1 / rms(x)``."""
    gpu, epsilon = Gpu(target), float(parameters["epsilon"])

    def body(dy: Buffer, x: Buffer, weight: Buffer, dx: Buffer) -> None:
        rows, columns = shape(x)
        with launch([rows], [gpu.threads]) as (row, thread):
            inverse = _inverse_rms(gpu, thread, x, row, columns, epsilon)
            dot = _row_sum(gpu, thread, columns, lambda i: dy[row, i] * weight[i] * x[row, i])
            along = bind(dot * inverse * inverse / T.float32(columns))

            def project(i: Expr) -> None:
                value = inverse * (dy[row, i] * weight[i] - x[row, i] * along)
                T.buffer_store(dx, value, [row, i])

            strided(columns, gpu.threads, thread, project)

    return None if static(function.params[1].shape[1]) is None else build(function, body)
