"""The embedding's or head's matrix in device memory, float16 or int8, read as float32."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape
from .kernel import Gpu
from .operand import VECTOR, Operand
from .vectors import LANES, four, lane

WIDE = 16
"""int8 elements of 16 bytes, the widest load."""


def is_readable(gpu: Gpu, table: Buffer) -> bool:
    """Tell whether a target's kernels can read a table of this type."""
    return str(table.dtype) == "int8" or "fp16" in gpu.target.features


def by_rows(table: Buffer, row_of: Callable[[Expr], Expr] = lambda row: row) -> Operand:
    """Return the factor ``table[row_of(outer), depth]`` of a product, without its scale."""
    width = _width(table)
    fetch, unpack = _access(table, width)
    return Operand(
        lambda o, k: fetch(row_of(o), k),
        True,
        width,
        _dtype(table, width),
        lambda f, o, k: unpack(f),
    )


def by_columns(table: Buffer, row_of: Callable[[Expr], Expr] = lambda row: row) -> Operand:
    """Return the factor ``table[row_of(depth), outer]`` of a product, without its scale."""
    width = _width(table)
    fetch, unpack = _access(table, width)
    return Operand(
        lambda o, k: fetch(row_of(k), o),
        False,
        width,
        _dtype(table, width),
        lambda f, o, k: unpack(f),
    )


def elements(table: Buffer, row: Expr, column: Expr) -> Expr:
    """Return four float32 from a column on that is a multiple of four, or one of an odd table."""
    fetch, unpack = _access(table, min(_width(table), LANES))
    return unpack(bind(fetch(row, column)))[0]


def _width(table: Buffer) -> int:
    """Return the elements of an access to a row: 16, 4 or 1."""
    widths = (WIDE, LANES) if str(table.dtype) == "int8" else (LANES,)
    return next((width for width in widths if shape(table)[1] % width == 0), 1)


def _dtype(table: Buffer, width: int) -> str:
    """Return the type of what an access of a width reads."""
    if width == WIDE:
        return "int32x4"
    if width == LANES:
        return f"int8x{LANES}" if str(table.dtype) == "int8" else "int32x2"
    return str(table.dtype)


def _access(
    table: Buffer, width: int
) -> tuple[Callable[[Expr, Expr], Expr], Callable[[Expr], list[Expr]]]:
    """Return what reads `width` elements at a row and column, and what makes float32 of them."""
    dtype = _dtype(table, width)

    def fetch(row: Expr, column: Expr) -> Expr:
        if width == 1:
            return table[row, column]
        rows, columns = shape(table)
        view = T.decl_buffer([rows, columns // width], dtype, data=table.data)
        return view[row, column // width]

    def unpack(fetched: Expr) -> list[Expr]:
        if width == 1:
            return [T.Cast("float32", fetched)]
        if dtype == "int32x2":
            return [_halves(fetched)]
        if width == LANES:
            return [T.Cast(VECTOR, fetched)]
        words = [lane(fetched, i) for i in range(WIDE // LANES)]
        return [T.Cast(VECTOR, T.call_pure_extern("int8x4", "as_char4", word)) for word in words]

    return fetch, unpack


def _halves(words: Expr) -> Expr:
    """Return the four float16 in two words as float32, by integers: a load is whole words then.

    With exponent and mantissa shifted to their places a number is too small by 2 to the 112.
    """

    def both(value: int) -> Expr:
        return T.broadcast(tirx.const(value, "int32"), 2)

    sign, factor = both(-(1 << 31)), T.broadcast(T.float32(2.0**112), 2)
    low = ((words & both(0x7FFF)) << both(13)) | ((words << both(16)) & sign)
    high = ((words >> both(3)) & both(0x7FFF << 13)) | (words & sign)
    even, odd = (
        bind(T.call_pure_extern("float32x2", "as_float2", bits) * factor) for bits in (low, high)
    )
    return four([lane(even, 0), lane(odd, 0), lane(even, 1), lane(odd, 1)])
