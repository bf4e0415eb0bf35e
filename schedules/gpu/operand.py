"""Where the factors of a matrix product come from, and vectors of four float32 in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, lanes_of, shape, static
from .vectors import LANES, fours

VECTOR = "float32x4"
"""The widest access of a thread: 16 bytes."""
HALF, HALVES = "float16", "float16x4"


@dataclass(frozen=True)
class Operand:
    """A factor of a matrix product: elements over an outer axis (its rows or columns) and a depth.

    Attributes
    ----------
    fetch : callable
        ``fetch(outer, depth)`` returns what one access to memory holds of `width` adjacent
        elements from there; `width` divides the coordinate and the extent along them.
    along_depth : bool
        Whether those elements lie along the depth; else along the outer axis.
    width : int
        1, 4 or 16. With 16 the outer axis' neighbours along the other axis are read together.
    dtype : str
        The dtype of what `fetch` returns.
    unpack : callable
        ``unpack(fetched, outer, depth)`` returns the elements in order: a list of `width` / 4
        vectors of four, or for a width of 1 of one scalar. It runs a while after the fetch.
    element : str
        The dtype of those: float32, or float16 to be held as such until they are multiplied, in
        float32 as always.
    undo : callable, optional
        ``undo(outer)`` is the factor on every sum of a row or column, where the elements are its
        multiples by a power of two.
    """

    fetch: Callable[[Expr, Expr], Expr]
    along_depth: bool = True
    width: int = LANES
    dtype: str = VECTOR
    unpack: Callable[[Expr, Expr, Expr], list[Expr]] = lambda fetched, outer, depth: [fetched]
    element: str = "float32"
    undo: Callable[[Expr], Expr] | None = None


def row_major(buffer: Buffer) -> Operand:
    """Return the operand ``buffer[outer, depth]`` of a float32 buffer."""
    if _wide(buffer):
        return Operand(lambda o, k: fours(buffer)[o, k // LANES])
    return Operand(lambda o, k: buffer[o, k], width=1, dtype="float32")


def depth_major(buffer: Buffer) -> Operand:
    """Return the operand ``buffer[depth, outer]`` of a float32 buffer."""
    if _wide(buffer):
        return Operand(lambda o, k: fours(buffer)[k, o // LANES], along_depth=False)
    return Operand(lambda o, k: buffer[k, o], along_depth=False, width=1, dtype="float32")


def shifted(operand: Operand, outer: int = 0, depth: int = 0) -> Operand:
    """Return the part of an operand that begins at these coordinates, multiples of its width."""
    undo = operand.undo
    return replace(
        operand,
        fetch=lambda o, k: operand.fetch(o + outer, k + depth),
        undo=None if undo is None else lambda o: undo(o + outer),
    )


def _wide(buffer: Buffer) -> bool:
    last = static(shape(buffer)[-1])
    return last is not None and last % LANES == 0


def scalars(buffer: Buffer) -> Buffer:
    """Return a buffer of vectors of four as one of scalars; inside a launch."""
    *outer, last = shape(buffer)
    dtype = str(buffer.dtype).split("x")[0]
    return T.decl_buffer([*outer, last * LANES], dtype, data=buffer.data, scope=buffer.scope())


def store_vector(buffer: Buffer, value: Expr, *index: Expr) -> None:
    """Store a float32, or a float32x4 whose last index and row length are multiples of four."""
    if lanes_of(value) == 1:
        T.buffer_store(buffer, value, list(index))
    else:
        T.buffer_store(fours(buffer), value, [*index[:-1], index[-1] // LANES])


def zero_vector() -> Expr:
    """Return a float32x4 of zeros."""
    return T.broadcast(T.float32(0.0), LANES)
