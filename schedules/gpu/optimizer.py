"""The kernels on flat buffers: gradient accumulation, sum of squares, and the AdamW step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..tir import Buffer, Expr, bind, shape, static, when
from .elements import constant, flat, load, over_flat, splat, store, threads
from .kernel import Gpu, build, ceil_div, launch, registers, scratch, strided
from .reduction import reduction
from .vectors import LANES, lane

STEPS = 4
"""Vectors of a thread's share of a sum of squares, by default."""

Add = Callable[[Expr], None]
"""Emits the addition of a term to a thread's sum."""


def _is_static(function: tirx.PrimFunc) -> bool:
    return all(static(e) is not None for p in function.params for e in p.shape)


def accumulate(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``total += term`` of several tensors, of any rank, in place, as one launch."""
    gpu = Gpu(target)

    def body(*parameters: Buffer) -> None:
        tensors = [flat(parameter) for parameter in parameters]
        half, count = len(tensors) // 2, threads(gpu)
        sizes = [shape(total)[0] for total in tensors[:half]]
        widths = [LANES if size % LANES == 0 else 1 for size in sizes]
        items = [size // width for size, width in zip(sizes, widths, strict=True)]
        ends = list(itertools.accumulate(ceil_div(n, count) for n in items))
        with launch([ends[-1]], [count]) as (block, thread):
            for i, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
                item = bind((block - begin) * count + thread)

                def add(i: int = i, item: Expr = item) -> None:
                    at, lanes = item * widths[i], widths[i]
                    total, term = tensors[i], tensors[half + i]
                    store(total, load(total, at, lanes=lanes) + load(term, at, lanes=lanes), at)

                when(tirx.all(block >= begin, block < end, item < items[i]), add)

    return build(function, body) if _is_static(function) else None


def sum_squares(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the sum of squares: a partial sum a work-group, then these by one work-group.

    What fits one work-group is one launch.
    """
    gpu = Gpu(target)
    steps = choose("steps", (1, 2, STEPS, 8, 16), STEPS)
    share = gpu.threads * LANES * steps

    def body(gradient: Buffer, total: Buffer) -> None:
        (size,) = shape(gradient)
        groups = ceil_div(size, share)
        partial = scratch([groups]) if groups > 1 else total
        with launch([groups], [gpu.threads]) as (group, thread):
            first = bind(group * share + thread * LANES)
            _group_sum(
                gpu,
                thread,
                partial,
                group,
                lambda add: _squares(gpu, gradient, first, steps, add),
            )
        if groups > 1:
            with launch([1], [gpu.threads]) as (_, thread):
                _group_sum(gpu, thread, total, 0, lambda add: _terms(gpu, partial, thread, add))

    return build(function, body) if _is_static(function) else None


def _group_sum(
    gpu: Gpu, thread: Expr, out: Buffer, place: Expr, terms: Callable[[Add], None]
) -> None:
    """Emit the sum of what each thread adds, and its store by one of them."""
    sums, mine = reduction(gpu, gpu.threads, thread), registers([1])
    store(mine, constant(0.0, 1), 0)
    terms(lambda value: store(mine, mine[0] + value, 0))
    sums.put([mine[0]])
    when(thread == 0, lambda: store(out, sums.get(), place))


def _squares(gpu: Gpu, gradient: Buffer, first: Expr, steps: int, add: Add) -> None:
    """Emit a thread's share of the squares: `steps` vectors, neighbours side by side."""
    (size,) = shape(gradient)

    def vector(at: Expr) -> None:
        value = bind(load(gradient, at, lanes=LANES))
        squares = bind(value * value)
        add((lane(squares, 0) + lane(squares, 1)) + (lane(squares, 2) + lane(squares, 3)))

    def rest() -> None:
        for element in range(size - size % LANES, size):
            add(gradient[element] * gradient[element])

    for step in range(steps):
        at = bind(first + step * gpu.threads * LANES)
        when(at + LANES <= size, partial(vector, at))
    if size % LANES:
        when(first == 0, rest)


def _terms(gpu: Gpu, partial: Buffer, thread: Expr, add: Add) -> None:
    (count,) = shape(partial)
    strided(count, gpu.threads, thread, lambda at: add(partial[at]))


def adamw(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out one AdamW step on parameter, moments and gradient, in place."""
    gpu = Gpu(target)

    def body(
        parameter: Buffer, moment1: Buffer, moment2: Buffer, gradient: Buffer, hyper: Buffer
    ) -> None:
        def update(i: Expr, lanes: int) -> None:
            def every(value: Expr) -> Expr:
                return bind(splat(value, lanes))

            rate, beta1, beta2, epsilon, decay, scale, correction1, correction2 = (
                bind(hyper[k]) for k in range(8)
            )
            one = T.float32(1.0)
            g = bind(every(scale) * load(gradient, i, lanes=lanes))
            m = bind(every(beta1) * load(moment1, i, lanes=lanes) + every(one - beta1) * g)
            v = bind(every(beta2) * load(moment2, i, lanes=lanes) + every(one - beta2) * g * g)
            root = bind(T.sqrt(v * every(one / correction2)) + every(epsilon))
            decayed = every(one - rate * decay) * load(parameter, i, lanes=lanes)
            store(parameter, decayed - every(rate / correction1) * m / root, i)
            store(moment1, m, i)
            store(moment2, v, i)
            store(gradient, constant(0.0, lanes), i)

        over_flat(gpu, shape(parameter)[0], update)

    return build(function, body) if _is_static(function) else None
