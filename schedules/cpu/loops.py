"""Loops over rows and flat buffers: whole vectors, fixed cuts, threads only where they pay."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from ..decisions import choose
from ..tir import Buffer, Expr, bind, branch, horizontal, load, loop, static, store, zeros

PARALLEL_ELEMENTS = 1 << 16
"""A loop over fewer elements is finished before the other threads have woken up."""

ACCUMULATORS = 4
"""Vectors that a sum keeps in flight, to hide the latency of the addition, by default."""


def ceil_div(size: Expr, step: int) -> Expr:
    """Return ``ceil(size / step)`` of a static or symbolic size."""
    return (size + (step - 1)) // step


def flat(buffer: Buffer) -> Buffer:
    """Return a contiguous buffer of any static shape as one axis."""
    if len(buffer.shape) == 1:
        return buffer
    size = math.prod(int(extent) for extent in buffer.shape)
    return T.decl_buffer((size,), buffer.dtype, data=buffer.data)


def over(extent: Expr, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """Emit ``body(first, width)`` over an extent: whole vectors, then single elements."""
    whole = extent // lanes
    with loop(whole) as v:
        body(v * lanes, lanes)
    if not (isinstance(extent, int) and extent % lanes == 0):
        with loop(extent, begin=whole * lanes) as e:
            body(e, 1)


def sum_over(extent: Expr, lanes: int, term: Callable[[Expr, int], Expr]) -> Expr:
    """Emit the sum of a term over an extent, in an order that no number of threads changes.

    Parameters
    ----------
    extent : int or PrimExpr
        Number of elements.
    lanes : int
        Lanes of a vector.
    term : callable
        Given the first index and a number of lanes, returns their float32 values.

    Returns
    -------
    PrimExpr
        The sum, a float32 scalar.
    """
    slots = choose("sums in flight", (2, 4, 8), ACCUMULATORS)
    block = slots * lanes
    partial, total = T.alloc_buffer((block,)), T.alloc_buffer((1,))

    def add(slot: int, first: Expr) -> None:
        store(partial, load(partial, slot * lanes, lanes=lanes) + term(first, lanes), slot * lanes)

    for slot in range(slots):
        store(partial, zeros("float32", lanes), slot * lanes)
    blocks, vectors = extent // block, extent // lanes
    with loop(blocks) as b:
        for slot in range(slots):
            add(slot, b * block + slot * lanes)
    with loop(vectors, begin=blocks * slots) as v:
        add(0, v * lanes)
    parts = [load(partial, slot * lanes, lanes=lanes) for slot in range(slots)]
    while len(parts) > 1:
        parts = [low + high for low, high in zip(parts[::2], parts[1::2], strict=True)]
    vector = bind(parts[0])
    T.buffer_store(total, horizontal(vector, lambda a, b: a + b), [0])
    with loop(extent, begin=vectors * lanes) as e:
        T.buffer_store(total, total[0] + term(e, 1), [0])
    return total[0]


def over_rows(rows: Expr, columns: Expr, body: Callable[[Expr], None]) -> None:
    """Emit ``body(row)`` for each row, on all threads if the rows hold many elements."""

    def rows_by(parallel: bool) -> None:
        with loop(rows, parallel) as row:
            body(row)

    large = rows * columns >= PARALLEL_ELEMENTS
    branch(large, lambda: rows_by(True), lambda: rows_by(False))


def over_chunks(extent: Expr, chunk: int, body: Callable[[Expr, Expr, Expr], None]) -> None:
    """Emit ``body(index, first element, elements)`` for the fixed cuts of a flat extent."""
    whole = static(extent) is not None and extent % chunk == 0

    def cut(c: Expr) -> None:
        body(c, c * chunk, chunk if whole else T.min(T.int64(chunk), extent - c * chunk))

    over_rows(ceil_div(extent, chunk), chunk, cut)
