"""Elementwise launches: a thread for four adjacent elements, loads and stores of 16 bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..decisions import choose
from ..tir import Buffer, Expr, bind, branch, lanes_of, static
from .kernel import Gpu, ceil_div, elements, loop
from .vectors import LANES, fours

THREADS = 128
"""Threads of a work-group that shares nothing; small enough to spread a few rows over a device."""


def threads(gpu: Gpu) -> int:
    """Return the threads of a work-group of an elementwise kernel."""
    counts = [count for count in (32, 64, THREADS, 256) if count <= gpu.threads]
    return choose("launch threads", counts or [gpu.threads], min(THREADS, gpu.threads))


def several() -> int:
    """Return how many vectors, or elements, a thread of an elementwise kernel has."""
    return choose("of a thread", (1, 2, 4), 1)


def load(buffer: Buffer, *index: Expr, lanes: int) -> Expr:
    """Return the element at `index`, or the four from there on; the place is a multiple of four."""
    *outer, last = index
    place = (*outer, last // LANES)
    return buffer[index] if lanes == 1 else fours(buffer)[place]


def store(buffer: Buffer, value: Expr, *index: Expr) -> None:
    """Store a scalar at `index`, or four adjacent elements from there on, see :func:`load`."""
    *outer, last = index
    if lanes_of(value) == 1:
        T.buffer_store(buffer, value, list(index))
    else:
        T.buffer_store(fours(buffer), value, [*outer, last // LANES])


def constant(value: float, lanes: int) -> Expr:
    """Return a float32 constant in every lane."""
    return splat(tirx.const(value, "float32"), lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """Return a scalar in every lane."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def flat(buffer: Buffer) -> Buffer:
    """Return a buffer of any static shape as one axis."""
    if len(buffer.shape) == 1:
        return buffer
    size = math.prod(int(extent) for extent in buffer.shape)
    return T.decl_buffer((tirx.const(size, "int32"),), buffer.dtype, data=buffer.data)


def over_rows(gpu: Gpu, rows: Expr, columns: int, body: Callable[[Expr, Expr, int], None]) -> None:
    """Launch ``body(row, first column, lanes)`` over a matrix, whose rows may be symbolic."""
    lanes = LANES if columns % LANES == 0 else 1
    steps = columns // lanes

    def element(index: Expr) -> None:
        body(bind(index // steps), index % steps * lanes, lanes)

    elements(rows * steps, threads(gpu), element, several())


def over_flat(gpu: Gpu, size: int, body: Callable[[Expr, int], None]) -> None:
    """Launch ``body(first, lanes)`` over a flat buffer of any static size."""
    whole, rest = divmod(size, LANES)

    def tail() -> None:
        with loop(rest) as element:
            body(element + (size - rest), 1)

    def element(index: Expr) -> None:
        if rest:
            branch(index < whole, lambda: body(index * LANES, LANES), tail)
        else:
            body(index * LANES, LANES)

    elements(ceil_div(size, LANES), threads(gpu), element, several())


def has_static_columns(function: tirx.PrimFunc, *parameters: int) -> bool:
    """Tell whether the last extents of these parameters are static."""
    return all(static(function.params[p].shape[-1]) is not None for p in parameters)
