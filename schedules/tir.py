"""Writing kernels with TVM's IR builder: the statements and expressions that every target shares.

A rule gives :func:`build` a PrimFunc and a function over its buffers, and gets a PrimFunc of the
same signature whose statements that function emitted. Indices may be Python ints or expressions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

Expr = Any
"""A scalar or vector TIR expression, or a Python number."""
Buffer = Any


def build(function: tirx.PrimFunc, body: Callable[..., None]) -> tirx.PrimFunc:
    """Return a PrimFunc of the same signature whose statements `body(*buffers)` emits.

    The parameters themselves are taken over, so symbolic extents stay the same variables. The
    buffers must not overlap, as between the arguments of ``call_tir``.
    """
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        body(*[T.arg(parameter.name, parameter) for parameter in function.params])
    return builder.get()


def static(extent: Expr) -> int | None:
    """Return an extent as a Python int, None where it is symbolic."""
    if isinstance(extent, int):
        return extent
    return int(extent.value) if isinstance(extent, tirx.IntImm) else None


def shape(buffer: Buffer) -> list[Any]:
    """Return a buffer's extents: Python ints where static, else the symbolic expressions."""
    return [e if static(e) is None else static(e) for e in buffer.shape]


def int64(value: Expr) -> Expr:
    """Return an index or extent as an int64 expression."""
    return tirx.const(value, "int64") if isinstance(value, int) else tirx.Cast("int64", value)


def loop(extent: Expr, parallel: bool = False, begin: Expr = 0) -> Any:
    """Open ``for i in range(begin, extent)``, on the thread pool if `parallel`; use with `with`."""
    return (T.parallel if parallel else T.serial)(int64(begin), int64(extent))


def branch(condition: Expr, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Emit both sides of a run-time branch; only one where the condition is a Python bool."""
    if isinstance(condition, bool):
        (then if condition else otherwise)()
        return
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()


def when(condition: Expr, then: Callable[[], None]) -> None:
    """Emit statements under a run-time condition."""
    with T.If(condition), T.Then():
        then()


def splat(value: Expr, lanes: int) -> Expr:
    """Return a scalar in every lane; a vector of `lanes` lanes comes back as it is."""
    if isinstance(value, float):
        value = tirx.const(value, "float32")
    return value if lanes_of(value) == lanes else T.broadcast(value, lanes)


def lanes_of(value: Expr) -> int:
    """Return the number of lanes of an expression."""
    return tvm.DataType(str(value.ty.dtype)).lanes


def load(buffer: Buffer, *index: Expr, lanes: int) -> Expr:
    """Return `lanes` adjacent elements that start at `index`."""
    last = int64(index[-1])
    place = (*index[:-1], last if lanes == 1 else T.ramp(last, 1, lanes))
    return buffer[place]


def store(buffer: Buffer, value: Expr, *index: Expr) -> None:
    """Store a scalar or a vector of adjacent elements at `index`."""
    lanes = lanes_of(value)
    last = int64(index[-1])
    T.buffer_store(buffer, value, [*index[:-1], last if lanes == 1 else T.ramp(last, 1, lanes)])


def constants(values: list[int], dtype: str = "int32") -> Expr:
    """Return a vector of different constants."""
    return tirx.Shuffle([tirx.const(v, dtype) for v in values], list(range(len(values))))


def horizontal(vector: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Reduce the lanes of a vector pairwise to a scalar: lane i with lane i + half, each time.

    The vector should be a load or a register, since it is written several times into the result.
    """
    lanes = lanes_of(vector)
    while lanes > 1:
        lanes //= 2
        if lanes == 1:
            low, high = (tirx.Shuffle([vector], [i]) for i in range(2))
        else:
            low = tirx.Shuffle([vector], list(range(lanes)))
            high = tirx.Shuffle([vector], list(range(lanes, 2 * lanes)))
        vector = bind(combine(low, high))
    return vector


def bind(value: Expr) -> Expr:
    """Name a value, so that using it several times computes it once."""
    return T.Bind(value)


def zeros(dtype: str, lanes: int) -> Expr:
    """Return a vector of zeros."""
    return T.broadcast(tirx.const(0, dtype), lanes)
