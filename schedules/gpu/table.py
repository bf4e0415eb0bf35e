"""The embedding's or head's matrix in device memory, float16 or int8, as a factor of products."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape
from .kernel import Gpu
from .operand import HALF, Operand
from .vectors import LANES, four, lane

WIDE = 16
"""int8 elements of 16 bytes, the widest load."""


def is_readable(gpu: Gpu, table: Buffer) -> bool:
    """Tell whether a target's kernels can read a table of this type."""
    return str(table.dtype) == "int8" or "fp16" in gpu.target.features


def by_rows(gpu: Gpu, table: Buffer, row_of: Callable[[Expr], Expr] = lambda row: row) -> Operand:
    """Return the factor ``table[row_of(outer), depth]`` of a product, without its scale.

    Its elements are halves, which hold either type exactly, where the device has them.
    """
    access = _Access(table, _width(table), gpu.halves)
    return access.operand(True, lambda o, k: (row_of(o), k))


def by_columns(
    gpu: Gpu, table: Buffer, row_of: Callable[[Expr], Expr] = lambda row: row
) -> Operand:
    """Return the factor ``table[row_of(depth), outer]`` of a product, see :func:`by_rows`."""
    access = _Access(table, _width(table), gpu.halves)
    return access.operand(False, lambda o, k: (row_of(k), o))


def elements(gpu: Gpu, table: Buffer, row: Expr, column: Expr) -> Expr:
    """Return four float32 from a column on that is a multiple of four, or one of an odd table."""
    access = _Access(table, min(_width(table), LANES), halves=False, widens=gpu.widens)
    return access.unpack(bind(access.fetch(row, column)))[0]


def _width(table: Buffer) -> int:
    """Return the elements of an access to a row: 16, 4 or 1."""
    widths = (WIDE, LANES) if str(table.dtype) == "int8" else (LANES,)
    return next((width for width in widths if shape(table)[1] % width == 0), 1)


class _Access:
    """How a table is read: `width` elements at a row and column, and what becomes of them.

    Parameters
    ----------
    table : Buffer
        ``(V, H)`` float16 or int8.
    width : int
        Elements of an access, see :func:`_width`.
    halves : bool
        Whether the elements become float16, else float32.
    widens : bool
        Whether a cast widens any float16 exactly.
    """

    def __init__(self, table: Buffer, width: int, halves: bool, widens: bool = False) -> None:
        self.table, self.width, self.halves = table, width, halves
        self.half = str(table.dtype) == HALF
        # Without exact casts a load is of whole words.
        self.words = self.half and not halves and not widens and width > 1
        wide = {WIDE: "int32x4", LANES: f"{table.dtype}x{LANES}", 1: str(table.dtype)}[width]
        self.dtype = "int32x2" if self.words else wide

    def operand(self, along_depth: bool, place: Callable[[Expr, Expr], tuple]) -> Operand:
        """Return the factor whose elements are at the row and column ``place(outer, depth)``."""
        return Operand(
            lambda o, k: self.fetch(*place(o, k)),
            along_depth,
            self.width,
            self.dtype,
            lambda fetched, o, k: self.unpack(fetched),
            HALF if self.halves else "float32",
        )

    def fetch(self, row: Expr, column: Expr) -> Expr:
        """Return what memory holds there."""
        if self.width == 1:
            return self.table[row, column]
        rows, columns = shape(self.table)
        view = T.decl_buffer([rows, columns // self.width], self.dtype, data=self.table.data)
        return view[row, column // self.width]

    def unpack(self, fetched: Expr) -> list[Expr]:
        """Return the elements of what :meth:`fetch` got, in vectors of four or by itself."""
        if self.words:
            return [widened(fetched)]
        vectors = [fetched]
        if self.width == WIDE:
            words = [lane(fetched, i) for i in range(WIDE // LANES)]
            vectors = [T.call_pure_extern("int8x4", "as_char4", word) for word in words]
        if self.half and self.halves:
            return vectors
        element = HALF if self.halves else "float32"
        dtype = element if self.width == 1 else f"{element}x{LANES}"
        return [T.Cast(dtype, vector) for vector in vectors]


def widened(words: Expr) -> Expr:
    """Return the four float16 in int32x2 as float32, by integers: a load is whole words then.

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
