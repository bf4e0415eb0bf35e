"""Rows that a work-group needs in the end, copied to shared memory while it begins.

A thread of a product's tile has outputs of many tokens; what belongs to each of these, such as its
product with an adapter, would be waited for again and again in the cache.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape, when
from .copies import copy_vector
from .kernel import ceil_div, shared
from .vectors import LANES, fours


def near_rows(source: Buffer, first: Expr, count: int, thread: Expr, threads: int) -> Buffer:
    """Ask for the copy of some rows; return where they will be.

    The copies belong to the first group that is closed afterwards, see `copies.py`.

    Parameters
    ----------
    source : Buffer
        ``(T, S, r)`` float32, r a multiple of four; what is past its end is the last row again.
    first, thread : PrimExpr
        The first row, and the thread.
    count, threads : int
        Rows, and threads.

    Returns
    -------
    Buffer
        ``(count, S, r')`` float32 in shared memory, r' at least r: an odd number of vectors, so
        that rows side by side begin in different banks.
    """
    total, slots, rank = shape(source)
    width = rank // LANES
    pitch = width + 1 - width % 2
    items = count * slots * width
    memory = shared([count, slots, pitch], f"float32x{LANES}")
    for step in range(ceil_div(items, threads)):
        index = bind(thread + step * threads)
        row, slot, column = index // (slots * width), index // width % slots, index % width
        place = [tirx.min(first + row, total - 1), slot, column]
        copy = partial(copy_vector, memory, [row, slot, column], fours(source), *place)
        copy() if (step + 1) * threads <= items else when(index < items, copy)
    return T.decl_buffer([count, slots, pitch * LANES], "float32", data=memory.data, scope="shared")
