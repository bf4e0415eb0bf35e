"""Vectors as wide as a head allows, for the attention kernels: memory viewed as them, their lanes.

Half a head has to be whole vectors, so that elements that are rotated together lie in the same lane
of two vectors: 4 lanes, or 2 or 1 where the width of the head demands it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind


def vector_type(lanes: int) -> str:
    """Return the type of a float32 vector; of one lane, a scalar's."""
    return "float32" if lanes == 1 else f"float32x{lanes}"


def view(buffer: Buffer, shape: Sequence[Expr], dtype: str) -> Buffer:
    """Return the memory of a buffer under another shape and type.

    A parameter may be viewed by a wider type, as its memory is aligned. In shared memory allocate
    the wide type and view that by the narrow one.
    """
    return T.decl_buffer(list(shape), dtype, data=buffer.data, scope=buffer.scope())


def matrix_of_vectors(buffer: Buffer, lanes: int) -> Buffer:
    """Return a view of floats whose last axis, a multiple of `lanes`, counts vectors."""
    *leading, last = buffer.shape
    dtype = str(buffer.dtype)
    return view(buffer, [*leading, last // lanes], dtype if lanes == 1 else f"{dtype}x{lanes}")


def extract(vector: Expr, lane: int, lanes: int) -> Expr:
    """Return one lane of a vector."""
    return vector if lanes == 1 else tirx.Shuffle([vector], [lane])


def times(value: Expr, factor: Expr | None) -> Expr:
    """Return a value times a factor, of which None is one."""
    return value if factor is None else bind(value * factor)


def total(vector: Expr, lanes: int) -> Expr:
    """Return the sum of the lanes of a vector, in a fixed order."""
    parts = [extract(vector, lane, lanes) for lane in range(lanes)]
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def splat(value: Expr, lanes: int) -> Expr:
    """Return a scalar in every lane; it is written `lanes` times, so it should be a name."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def zero(lanes: int) -> Expr:
    """Return a vector of zeros."""
    return splat(T.float32(0.0), lanes)
