"""The kernels on flat buffers: gradient accumulation, sum of squares, and the AdamW step."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..tir import Buffer, Expr, bind, build, load, loop, shape, splat, store, zeros
from .isa import vector_lanes
from .loops import ceil_div, flat, over, over_chunks, sum_over

CHUNK = 8192
"""Elements of one cut of a flat buffer by default: 32 KiB, a few microseconds of work."""


def _chunk() -> int:
    return choose("chunk", (2048, 4096, CHUNK, 16384, 32768), CHUNK)


def accumulate(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``total += term`` of several tensors, of any rank, in place."""
    lanes = vector_lanes(target)

    def body(*parameters: Buffer) -> None:
        half = len(parameters) // 2
        for pair in zip(parameters[:half], parameters[half:], strict=True):
            one(*(flat(parameter) for parameter in pair))

    def one(total: Buffer, term: Buffer) -> None:
        def chunk(_: Expr, first: Expr, count: Expr) -> None:
            def add(i: Expr, n: int) -> None:
                at = first + i
                store(total, load(total, at, lanes=n) + load(term, at, lanes=n), at)

            over(count, lanes, add)

        over_chunks(shape(total)[0], _chunk(), chunk)

    return build(function, body)


def sum_squares(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the sum of squares: one partial sum a chunk, then these in order.

    The cuts do not depend on the number of threads, so neither does the result.
    """
    lanes = vector_lanes(target)

    def body(gradient: Buffer, total: Buffer) -> None:
        (extent,) = shape(gradient)
        elements = _chunk()
        chunks = ceil_div(extent, elements)
        partial = T.alloc_buffer((chunks,))

        def chunk(c: Expr, first: Expr, count: Expr) -> None:
            def square(i: Expr, n: int) -> Expr:
                return load(gradient, first + i, lanes=n) * load(gradient, first + i, lanes=n)

            store(partial, sum_over(count, lanes, square), c)

        over_chunks(extent, elements, chunk)
        store(total, T.float32(0.0), 0)
        with loop(chunks) as c:
            store(total, total[0] + partial[c], 0)

    return build(function, body)


def adamw(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out one AdamW step on parameter, moments and gradient, in place."""
    lanes = vector_lanes(target)

    def body(
        parameter: Buffer, moment1: Buffer, moment2: Buffer, gradient: Buffer, hyper: Buffer
    ) -> None:
        rate, beta1, beta2, epsilon, decay, scale, correction1, correction2 = (
            bind(hyper[i]) for i in range(8)
        )
        one = T.float32(1.0)
        rest1, rest2, kept = bind(one - beta1), bind(one - beta2), bind(one - rate * decay)
        step, unbias = bind(rate / correction1), bind(one / correction2)

        def chunk(_: Expr, first: Expr, count: Expr) -> None:
            def update(i: Expr, n: int) -> None:
                at = first + i
                g = bind(splat(scale, n) * load(gradient, at, lanes=n))
                m = bind(splat(beta1, n) * load(moment1, at, lanes=n) + splat(rest1, n) * g)
                v = bind(splat(beta2, n) * load(moment2, at, lanes=n) + splat(rest2, n) * g * g)
                root = T.sqrt(v * splat(unbias, n)) + splat(epsilon, n)
                p = splat(kept, n) * load(parameter, at, lanes=n) - splat(step, n) * m / root
                store(parameter, p, at)
                store(moment1, m, at)
                store(moment2, v, at)
                store(gradient, zeros("float32", n) if n > 1 else T.float32(0.0), at)

            over(count, lanes, update)

        over_chunks(shape(parameter)[0], _chunk(), chunk)

    return build(function, body)
