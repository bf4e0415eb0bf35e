"""The factors of the head's products on matrix units: inputs, table and weights as panels."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape
from .half_block import EIGHT, WORDS
from .head_chunks import Chunks
from .matrix_tile import MatrixTile
from .operand import HALF
from .vectors import LANES, four, fours, held, lane

BYTES = 0x00FF00FF
"""The places of two bytes in a word of two 16-bit floats."""
SIGN = -0x7F7F7F80
"""What makes 0 to 255 of signed bytes: the sign of each turned round."""
MAGIC, ZERO = 0x64006400, 1024.0 + 128.0
"""The bits of 1024 in both, with a byte in the low bits 1024 more than that; and what 0 becomes."""


class InputPanel:
    """Rows of 16-bit floats in memory, an outer coordinate each.

    Parameters
    ----------
    tile : MatrixTile
        The tile.
    words : Buffer
        ``(T', N / 2)`` int32, two elements each; T' is of whole tiles.
    first : PrimExpr
        The tile's first row.
    """

    along_depth = True
    dtypes: Sequence[str] = (WORDS,)

    def __init__(self, tile: MatrixTile, words: Buffer, first: Expr) -> None:
        self.rows, self.vectors, self.first = tile.rows, tile.step, first
        self.loads = tile.rows * tile.step
        self.words = fours(words)

    def fetch(self, index: Expr, step: Expr) -> list[Expr]:
        """Return a vector of the step."""
        row, vector = index // self.vectors, index % self.vectors
        return [self.words[self.first + row, step * self.vectors + vector]]

    def unpack(self, index: Expr, found: list[Expr]) -> list[tuple[Expr, Expr, Expr]]:
        """Return it as it is."""
        return [(index // self.vectors, index % self.vectors, found[0])]


class WeightPanel(InputPanel):
    """Rows of weights, of which each strip has a factor of its own.

    Parameters
    ----------
    factors : Buffer
        ``(T', strips)`` float16.
    strip : int
        Elements of a strip, some whole steps.
    """

    dtypes: Sequence[str] = (WORDS, HALF)

    def __init__(
        self, tile: MatrixTile, words: Buffer, first: Expr, factors: Buffer, strip: int
    ) -> None:
        super().__init__(tile, words, first)
        self.factors, self.steps = factors, strip // (EIGHT * tile.step)

    def fetch(self, index: Expr, step: Expr) -> list[Expr]:
        """Return a vector of the step and its factor."""
        factor = self.factors[self.first + index // self.vectors, step // self.steps]
        return [*super().fetch(index, step), factor]

    def unpack(self, index: Expr, found: list[Expr]) -> list[tuple[Expr, Expr, Expr]]:
        """Return the product of both."""
        words, factor = found
        return [(index // self.vectors, index % self.vectors, scaled(words, factor))]


class TablePanel:
    """Rows of the head's table; of each four int8 the middle ones have changed places.

    Parameters
    ----------
    tile : MatrixTile
        The tile.
    table : Buffer
        ``(V, H)`` int8 or float16.
    chunks : Chunks
        The cuts of the vocabulary.
    row, column : PrimExpr
        The tile's first row of the vocabulary and, with ``along_depth=False``, its first column.
    along_depth : bool
        Whether the columns of the table are the depth, else its rows.
    """

    dtypes: Sequence[str] = (WORDS,)

    def __init__(
        self,
        tile: MatrixTile,
        table: Buffer,
        chunks: Chunks,
        row: Expr,
        column: Expr,
        along_depth: bool,
    ) -> None:
        self.along_depth, self.chunks, self.row = along_depth, chunks, row
        self.rows = tile.columns if along_depth else tile.step * EIGHT
        self.vectors = tile.step if along_depth else tile.columns // EIGHT
        self.each = vectors_of_load(table)
        rows, columns = shape(table)
        self.width = columns // (EIGHT * self.each)
        self.table = T.decl_buffer([rows, self.width], WORDS, data=table.data)
        self.across = self.vectors // self.each
        self.loads = self.rows * self.across
        self.column = column // (EIGHT * self.each)
        self.ragged = not along_depth and columns % tile.columns != 0

    def fetch(self, index: Expr, step: Expr) -> list[Expr]:
        """Return 16 bytes of a row; one past the vocabulary's end is the last again."""
        row, place = self.row + index // self.across, index % self.across
        if self.along_depth:
            return [self.table[self.chunks.row(row), step * self.across + place]]
        column = self.column + place
        if self.ragged:
            column = tirx.min(column, self.width - 1)
        return [self.table[self.chunks.row(row + step * self.rows), column]]

    def unpack(self, index: Expr, found: list[Expr]) -> list[tuple[Expr, Expr, Expr]]:
        """Return the vectors of 16-bit floats that they are."""
        row, place = index // self.across, index % self.across
        if self.each == 1:
            return [(row, place, found[0])]
        vectors = []
        for v in range(self.each):
            pairs = [p for i in range(2) for p in _pairs(lane(found[0], 2 * v + i))]
            vectors.append((row, place * self.each + v, four(pairs, "int32")))
        return vectors


def scaled(words: Expr, factor: Expr) -> Expr:
    """Return the eight 16-bit floats of a vector times another."""
    both = T.broadcast(factor, 2)
    pairs = [T.reinterpret("float16x2", lane(words, i)) * both for i in range(LANES)]
    return four([held(T.reinterpret("int32", pair)) for pair in pairs], "int32")


def vectors_of_load(table: Buffer) -> int:
    """Return how many vectors of eight elements 16 bytes of a table are."""
    return 2 if str(table.dtype) == "int8" else 1


def permuted(table: Buffer, values: list[Expr]) -> list[Expr]:
    """Return each four values in the order of a table's panel, or back in their own."""
    if str(table.dtype) != "int8":
        return values
    a, b, c, d = values
    return [a, c, b, d]


def _pairs(word: Expr) -> list[Expr]:
    """Return the first and third, and the second and last byte of a word as 16-bit floats."""
    shifted = bind(word ^ tirx.const(SIGN, "int32"))
    found = []
    for bits in (shifted, shifted >> 8):
        pair = T.reinterpret("float16x2", (bits & BYTES) | MAGIC)
        difference = pair - T.broadcast(T.float16(ZERO), 2)
        found.append(held(T.reinterpret("int32", difference)))
    return found
