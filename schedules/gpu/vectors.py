"""Vectors of four 32-bit elements in memory, read and written 16 bytes at a time.

A view types the memory as vectors, which promises the device's compiler that each begins at a
multiple of 16 bytes. A launch must not touch a tensor both through a view and as it is: the
compiler is told that two tensors do not overlap.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, lanes_of, shape, splat
from .kernel import registers

LANES = 4
"""Elements of a vector."""
_CONSTRUCTORS = {"float32": "(float4)", "int32": "(int4)"}


def fours(buffer: Buffer) -> Buffer:
    """Return a tensor seen as vectors of four along its last axis, whose extent four divides."""
    *outer, last = shape(buffer)
    return T.decl_buffer(
        [*outer, last // LANES], f"{buffer.dtype}x{LANES}", data=buffer.data, scope=buffer.scope()
    )


def lane(vector: Expr, index: int) -> Expr:
    """Return one element of a vector."""
    return tirx.Shuffle([vector], [index])


def four(values: list[Expr], dtype: str = "float32") -> Expr:
    """Return four scalars as a vector."""
    return T.call_pure_extern(f"{dtype}x{LANES}", _CONSTRUCTORS[dtype], *values)


def held(value: Expr) -> Expr:
    """Return a value kept in a register of its own, inside a launch.

    Simplification writes a bound value out again wherever it reads no memory. What takes a while to
    compute, or a branch, and is needed more than once, should be held.
    """
    register = registers([1], str(value.ty.dtype))
    T.buffer_store(register, value, [0])
    return register[0]


def only(condition: Expr | None, value: Expr) -> Expr:
    """Return a vector or scalar, or zeros where a condition does not hold; None always holds."""
    if condition is None:
        return value
    zero = tirx.const(0, str(value.ty.dtype).split("x")[0])
    return bind(T.if_then_else(condition, value, splat(zero, lanes_of(value))))


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`."""
    return 1 << max(size - 1, 0).bit_length()
