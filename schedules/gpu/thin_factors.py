"""The adapters' thin factors of an adjoint, ``u = scale x A^T`` and ``du = scale dy B^T``.

A work-group takes a few tokens and a few ranks of one product, so that none waits long: the rows
are thousands of elements wide, the results a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, when
from .kernel import Gpu, ceil_div, launch, loop, registers
from .quantise import dot
from .reduction import Reduction
from .vectors import only

HEIGHT = 2
"""Tokens of a work-group."""
RANKS = 8
"""Ranks of a work-group."""


@dataclass(frozen=True)
class Thin:
    """One product ``out[token, first + j] = sum_v left(token, v) right(j, v)``.

    Attributes
    ----------
    left, right : callable
        ``left(token, v)`` and ``right(j, v)`` return vectors of four.
    vectors : int
        Of a row.
    out : Buffer
        ``(1, T, S r)`` float32.
    first : int
        The first column.
    """

    left: Callable[[Expr, Expr], Expr]
    right: Callable[[Expr, Expr], Expr]
    vectors: int
    out: Buffer
    first: int


def emit_thin(gpu: Gpu, tokens: Expr, rank: int, scale: float, products: list[Thin]) -> None:
    """Emit the launch of some products of `rank` columns each, times `scale`."""
    threads, count = gpu.threads, HEIGHT * RANKS
    grid = [ceil_div(tokens, HEIGHT), len(products), ceil_div(rank, RANKS)]
    with launch(grid, [threads]) as (group, slot, chunk, thread):
        sums, total = Reduction(threads, thread, count), registers([count])
        for i in range(count):
            T.buffer_store(total, T.float32(0.0), [i])
        # A token or rank past the end is the last one again, and nobody stores it.
        rows = [bind(tirx.min(group * HEIGHT + i, tokens - 1)) for i in range(HEIGHT)]
        ranks = [bind(tirx.min(chunk * RANKS + j, rank - 1)) for j in range(RANKS)]

        def add(product: Thin) -> None:
            with loop(ceil_div(product.vectors, threads)) as step:
                place, inside = bind(step * threads + thread), None
                if product.vectors % threads:
                    inside = bind(place < product.vectors)
                    place = bind(tirx.min(place, product.vectors - 1))
                values = [only(inside, bind(product.left(row, place))) for row in rows]
                for j, number in enumerate(ranks):
                    factor = bind(product.right(number, place))
                    for i, value in enumerate(values):
                        at = i * RANKS + j
                        T.buffer_store(total, dot(value, factor, total[at]), [at])

        for i, product in enumerate(products):
            when(slot == i, partial(add, product))
        sums.put([total[i] for i in range(count)])
        token, j = bind(group * HEIGHT + thread // RANKS), bind(chunk * RANKS + thread % RANKS)
        inside = bind(tirx.all(thread < count, token < tokens, j < rank))
        value = bind(sums.get(tirx.min(thread, count - 1)) * T.float32(scale))
        for i, product in enumerate(products):

            def put(product: Thin = product) -> None:
                T.buffer_store(product.out, value, [0, token, product.first + j])

            when(tirx.all(inside, slot == i), put)
