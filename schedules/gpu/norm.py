"""Root-mean-square normalisation: a work-group for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..tir import Buffer, Expr, bind, shape
from .elements import constant, has_static_columns, load, splat, store
from .gated import activation
from .kernel import Gpu, build, launch, registers, strided
from .reduction import reduction
from .vectors import LANES, lane


def row_threads(gpu: Gpu) -> int:
    """Return the threads that share a row, a power of two."""
    counts = [count for count in (32, 64, 128, 256, 512) if count <= _most(gpu)]
    return choose("row threads", counts or [gpu.threads], gpu.threads)


def _most(gpu: Gpu) -> int:
    """Return the threads of the largest work-group."""
    assert gpu.target.limits is not None
    return gpu.target.limits.max_threads


class _Row:
    """A row that a work-group shares, four elements a thread at a time where the length allows.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    thread : PrimExpr
        The thread's index.
    columns : int
        The row's length.
    sums : int
        Sums that are taken of it, a power of two.
    """

    def __init__(self, gpu: Gpu, thread: Expr, columns: int, sums: int) -> None:
        self.gpu, self.thread, self.columns, self.sums = gpu, thread, columns, sums
        self.lanes = LANES if columns % LANES == 0 else 1
        self.threads = row_threads(gpu)
        self.reduction = reduction(gpu, self.threads, thread, sums)
        self.mine = registers([sums])

    def each(self, body: Callable[[Expr], None]) -> None:
        """Emit ``body(first column)`` for the thread's share of the row."""
        steps = self.columns // self.lanes
        strided(steps, self.threads, self.thread, lambda i: body(i * self.lanes))

    def total(self, terms: Callable[[Expr], list[Expr]]) -> list[Expr]:
        """Emit the sums over the row of what ``terms(first column)`` returns."""
        for s in range(self.sums):
            store(self.mine, constant(0.0, 1), s)

        def add(column: Expr) -> None:
            for s, value in enumerate(terms(column)):
                v = bind(value)
                if self.lanes > 1:
                    v = (lane(v, 0) + lane(v, 1)) + (lane(v, 2) + lane(v, 3))
                store(self.mine, self.mine[s] + v, s)

        self.each(add)
        self.reduction.put([self.mine[s] for s in range(self.sums)])
        return [self.reduction.get(s) for s in range(self.sums)]

    def inverse(self, squares: Expr, epsilon: float) -> Expr:
        """Return ``1 / sqrt(mean + epsilon)`` for the sum of squares."""
        mean = squares / T.float32(self.columns)
        return bind(T.float32(1.0) / T.sqrt(mean + T.float32(epsilon)))


def rms_norm(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``y = x / rms(x) * weight``."""
    gpu, epsilon = Gpu(target), float(parameters["epsilon"])

    def body(x: Buffer, weight: Buffer, y: Buffer) -> None:
        emit_norm(gpu, x, weight, y, epsilon)

    return build(function, body) if has_static_columns(function, 0) else None


def emit_norm(gpu: Gpu, x: Buffer, weight: Buffer, y: Buffer, epsilon: float) -> None:
    """Emit the launch of ``y = x / rms(x) * weight``."""
    rows, columns = shape(x)
    with launch([rows], [row_threads(gpu)]) as (t, thread):
        row = _Row(gpu, thread, columns, 1)

        def square(i: Expr) -> list[Expr]:
            value = bind(load(x, t, i, lanes=row.lanes))
            return [value * value]

        inverse = row.inverse(row.total(square)[0], epsilon)

        def scale(i: Expr) -> None:
            scaled = load(x, t, i, lanes=row.lanes) * splat(inverse, row.lanes)
            store(y, scaled * load(weight, i, lanes=row.lanes), t, i)

        row.each(scale)


def rms_norm_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``dx = r (w dy - x r^2 mean(w dy x))`` with ``r = 1 / rms(x)``, plus another sum."""
    gpu, epsilon = Gpu(target), float(parameters["epsilon"])

    def body(dy: Buffer, x: Buffer, weight: Buffer, *rest: Buffer) -> None:
        *added, dx = rest
        rows, columns = shape(x)
        with launch([rows], [row_threads(gpu)]) as (t, thread):
            row = _Row(gpu, thread, columns, 2)

            def at(i: Expr) -> tuple[Expr, Expr]:
                value = bind(load(x, t, i, lanes=row.lanes))
                weighted = load(dy, t, i, lanes=row.lanes) * load(weight, i, lanes=row.lanes)
                return value, bind(weighted)

            def terms(i: Expr) -> list[Expr]:
                value, weighted = at(i)
                return [value * value, weighted * value]

            squares, dot = row.total(terms)
            inverse = row.inverse(squares, epsilon)
            along = bind(dot * inverse * inverse / T.float32(columns))

            def project(i: Expr) -> None:
                value, weighted = at(i)
                across = weighted - value * splat(along, row.lanes)
                total = across * splat(inverse, row.lanes)
                for other in added:
                    total = total + load(other, t, i, lanes=row.lanes)
                store(dx, total, t, i)

            row.each(project)

    return build(function, body) if has_static_columns(function, 1) else None


def gated_norm_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the adjoints of the gate's halves for the one after the norm of its result."""
    gpu, epsilon, kind = Gpu(target), float(parameters["epsilon"]), str(parameters["kind"])

    def body(dy: Buffer, gate_up: Buffer, weight: Buffer, adjoint: Buffer) -> None:
        rows, columns = shape(dy)
        with launch([rows], [row_threads(gpu)]) as (t, thread):
            row = _Row(gpu, thread, columns, 2)

            def at(i: Expr) -> tuple[Expr, Expr, Expr, Expr]:
                gate = bind(load(gate_up, t, i, lanes=row.lanes))
                up = bind(load(gate_up, t, i + columns, lanes=row.lanes))
                weighted = load(dy, t, i, lanes=row.lanes) * load(weight, i, lanes=row.lanes)
                return *activation(kind, gate, row.lanes), up, bind(weighted)

            def terms(i: Expr) -> list[Expr]:
                value, _, up, weighted = at(i)
                x = bind(value * up)
                return [x * x, weighted * x]

            squares, dot = row.total(terms)
            inverse = row.inverse(squares, epsilon)
            along = bind(dot * inverse * inverse / T.float32(columns))

            def project(i: Expr) -> None:
                value, slope, up, weighted = at(i)
                across = weighted - value * up * splat(along, row.lanes)
                outer = bind(across * splat(inverse, row.lanes))
                store(adjoint, outer * slope * up, t, i)
                store(adjoint, outer * value, t, i + columns)

            row.each(project)

    return build(function, body) if has_static_columns(function, 0) else None
