"""The head's table of bytes as the left factor of Hopper's products, unpacked to 16-bit floats.

A byte b becomes 1024 + 128 + b by a change of its sign and a byte of the half beside it, and what
is too much comes off: the integers are exact. Which outputs a thread has is said in
`warpgroup_weights.py`; steps are of 64 elements of the depth.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape
from .head_chunks import Chunks
from .head_panels import SIGN, ZERO
from .vectors import LANES, held, lane
from .warpgroup import LINE, THREADS, bytes_of
from .warpgroup_tile import COLUMNS, PRODUCTS
from .warpgroup_weights import CHUNKS

WIDE = 16
"""Bytes of a vector."""
DEPTH = LINE // 2
"""16-bit floats of a step."""
ACROSS = COLUMNS // WIDE
"""Vectors of a row's columns of a work-group."""
MAGIC = 0x64646464
"""The high byte of the half 1024, four times."""
BOTH = (0x4140, 0x4342)
"""What selects two bytes of a word, each below such a high byte."""
INTERLEAVED = (0x5140, 0x7362)
"""What selects two outputs of a word of each of two rows, both rows' bytes side by side."""


class TableRows:
    """Outputs are rows of the table, the depth is its columns.

    A thread has of a row's step the 16 bytes of its quarter, four of each product: `input_columns`
    tells which columns of the tokens meet them.

    Parameters
    ----------
    table : Buffer
        ``(V, N)`` int8, N a multiple of 64.
    chunks : Chunks
        The cuts of the vocabulary.
    first : PrimExpr
        The first row of the work-group.
    thread : PrimExpr
        The thread.
    """

    vectors = COLUMNS * DEPTH // WIDE

    def __init__(self, table: Buffer, chunks: Chunks, first: Expr, thread: Expr) -> None:
        self.table, self.chunks, self.first, self.thread = _wide(table), chunks, first, thread

    def source(self, step: Expr, index: Expr) -> tuple[Buffer, list[Expr]]:
        """Return the place of a vector: all threads' vectors of their first rows come first."""
        row = self.first + index % THREADS // LANES * LANES + index // THREADS
        return self.table, [self.chunks.row(row), step * (DEPTH // WIDE) + index % LANES]

    def unpack(self, memory: Buffer, place: Expr, group: int) -> list[list[list[Expr]]]:
        """Return the registers of 32 columns; a vector is read once, for both groups."""
        if group == 0:
            self.rows = [bind(memory[place + r * THREADS + self.thread]) for r in range(LANES)]
        found = []
        for chunk in range(CHUNKS):
            pairs = [_both(lane(row, CHUNKS * group + chunk)) for row in self.rows]
            found.append(
                [
                    [pairs[2 * i + half][late] for late in range(2) for half in range(2)]
                    for i in range(PRODUCTS)
                ]
            )
        return found


def input_columns(vector: Expr) -> tuple[Expr, Expr]:
    """Return which two pairs of a token's columns are a vector of four of the right factor.

    Of 64 columns, the thread q has for the product c the columns ``16 q + 4 c`` and so on: pairs
    that lie side by side in the factor are those of neighbouring threads.
    """
    step, product, half, threads = vector // 16, vector // 4 % 4, vector // 2 % 2, vector % 2
    first = bind(step * (DEPTH // 2) + threads * 16 + product * 2 + half)
    return first, first + 8


class TableColumns:
    """Outputs are columns of the table, the depth is its rows.

    Parameters
    ----------
    table, chunks, thread
        As of `TableRows`.
    row, column : PrimExpr
        The first row of the depth, and the first column of the work-group.
    """

    vectors = COLUMNS * DEPTH // WIDE

    def __init__(
        self, table: Buffer, chunks: Chunks, row: Expr, column: Expr, thread: Expr
    ) -> None:
        self.table, self.chunks, self.row, self.column = _wide(table), chunks, row, column // WIDE
        self.ragged = shape(table)[1] % COLUMNS != 0
        self.output, self.quarter = bind(thread // LANES), bind(thread % LANES)

    def source(self, step: Expr, index: Expr) -> tuple[Buffer, list[Expr]]:
        """Return the place of a vector of a step of 64 rows.

        A warp reads two vectors of each of four rows at once, 2 apart: so that they lie in
        different banks, those of a row change places.
        """
        row, place = index // ACROSS, index % ACROSS
        column = self.column + (place ^ (row // 2 % LANES * 2))
        if self.ragged:
            column = tirx.min(column, shape(self.table)[1] - 1)
        return self.table, [self.chunks.row(self.row + step * DEPTH + row), column]

    def unpack(self, memory: Buffer, place: Expr, group: int) -> list[list[list[Expr]]]:
        """Return the registers of 32 rows."""
        count, scope = int(memory.shape[0]) * LANES, memory.scope()
        words = T.decl_buffer([count], "int32", data=memory.data, scope=scope)
        vector = (self.output // LANES) ^ (self.quarter * 2)
        own = place + self.quarter * 2 * ACROSS + vector
        own = bind(own * LANES + self.output % LANES)
        pitch, found = ACROSS * LANES, []
        for chunk in range(CHUNKS):
            first = own + (CHUNKS * group + chunk) * 16 * pitch
            rows = [bind(words[first + row * pitch]) for row in (0, 1, 8, 9)]
            found.append([self._product(rows, selector) for selector in INTERLEAVED])
        return found

    @staticmethod
    def _product(rows: list[Expr], selector: int) -> list[Expr]:
        """Return the registers of two outputs of four rows."""
        both = [bytes_of(rows[early], rows[early + 1], selector) for early in (0, 2)]
        return [half for word in both for half in _both(word)]


def _wide(table: Buffer) -> Buffer:
    """Return a table as vectors of 16 bytes."""
    rows, columns = shape(table)
    return T.decl_buffer([rows, columns // WIDE], f"int32x{LANES}", data=table.data)


def _both(word: Expr) -> list[Expr]:
    """Return the first two and the last two bytes of a word as 16-bit floats."""
    word, magic = bind(word ^ tirx.const(SIGN, "int32")), tirx.const(MAGIC, "int32")
    found = []
    for selector in BOTH:
        pair = T.reinterpret("float16x2", bytes_of(word, magic, selector))
        exact = pair - T.broadcast(T.float16(ZERO), 2)
        found.append(held(T.reinterpret("int32", exact)))
    return found
