"""The factors of a ternary product on their way to matrix units: as bytes, or as 16-bit floats.

Both a token's integers and the weights' codes ``W + 1`` are exact in 16-bit floats, and so are
float32 sums of their products below 2^24: a device whose units take no bytes gives the same
integers. Bytes become floats as they are written to shared memory, so device memory is read no more
than for units of bytes.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..ternary import TILE
from ..tir import Buffer, Expr, bind, shape
from .matrix_tile import MatrixTile
from .packed import HALVES, Columns
from .token_words import LEVELS
from .vectors import LANES, four, held, lane

LONGEST = (1 << 24) // int(2 * LEVELS)
"""The most columns whose sums of integers times codes are exact in float32."""
THOUSAND = 1024
"""Its 16-bit float holds an integer below it in the low bits of its fraction: 1024 + integer."""
BITS = 0x64006400
"""The bits of 1024 twice."""
SIGN = 128
"""What a signed byte is less than the unsigned one of the other sign bit."""


def halves(words: list[Expr], signed: bool) -> list[Expr]:
    """Return four words of four bytes each as two vectors of eight 16-bit floats.

    Of each four bytes the middle ones change places, which is how they come out of a word; as this
    is so of both factors, their products meet.
    """
    offset = SIGN if signed else 0
    bits, excess = BITS + offset * 0x00010001, T.broadcast(T.float16(THOUSAND + offset), 2)

    def pair(shifted: Expr) -> Expr:
        both = T.reinterpret("float16x2", (shifted & HALVES) ^ bits)
        return held(T.reinterpret("int32", both - excess))

    pairs = [pair(shifted) for word in words for shifted in (word, word >> 8)]
    return [four(pairs[begin : begin + LANES], "int32") for begin in (0, LANES)]


def integers(sums: list[Expr]) -> list[Expr]:
    """Return sums of 16-bit floats' products, whose bits are given, as the integers they are."""
    return [T.cast(T.reinterpret("float32", s), "int32") for s in sums]


class Codes:
    """The codes of the weights: a word is one vector along the depth."""

    by_row = False
    vectors = 1
    """Vectors that a word becomes."""

    def __init__(self, tile: MatrixTile, matrix: Columns, first: Expr) -> None:
        self.matrix, self.first, self.dtype = matrix, first, matrix.dtype
        self.last = shape(matrix.packed)[0] * TILE - 1
        self.ragged = (self.last + 1) % tile.columns
        self.rows, self.columns = tile.columns, tile.step
        self.across = self.columns // self.vectors
        self.words = self.rows * self.across

    def _place(self, index: Expr) -> tuple[Expr, Expr]:
        """Return the row and the place in it of a word: neighbours take neighbours."""
        row = index // (TILE * self.across) * TILE + index % TILE
        return row, index // TILE % self.across

    def fetch(self, index: Expr, step: Expr) -> Expr:
        """Return one of a step's packed words."""
        row, place = self._place(index)
        row = self.first + row
        if self.ragged:
            row = tirx.min(row, self.last)
        # What is fetched last is what is unpacked next.
        self.begin = bind(step * self.across)
        return self.matrix.fetch(row, self.begin + place)

    def unpack(self, index: Expr, word: Expr) -> list[tuple[Expr, Expr, Expr]]:
        """Return the vectors that a word becomes."""
        row, place = self._place(index)
        found = self._become(self.matrix.codes(word, self.begin + place))
        return [(row, place * self.vectors + v, vector) for v, vector in enumerate(found)]

    def _become(self, codes: list[Expr]) -> list[Expr]:
        return [four(codes, "int32")]


class HalfCodes(Codes):
    """The codes of the weights as 16-bit floats: a word is two vectors along the depth."""

    vectors = 2

    def _become(self, codes: list[Expr]) -> list[Expr]:
        return halves(codes, signed=False)


class HalfTokens:
    """The tokens' integers as 16-bit floats: a vector of bytes is two along the depth.

    Parameters
    ----------
    tile : MatrixTile
        The work-groups' outputs.
    words : Buffer
        ``(T', K / 16)`` int32x4 of bytes.
    first : PrimExpr
        The first token.
    """

    by_row = False
    dtype = f"int32x{LANES}"
    vectors = HalfCodes.vectors

    def __init__(self, tile: MatrixTile, words: Buffer, first: Expr) -> None:
        self.memory, self.first = words, first
        self.rows, self.columns = tile.rows, tile.step
        self.across = self.columns // self.vectors
        self.words = self.rows * self.across

    def fetch(self, index: Expr, step: Expr) -> Expr:
        """Return one of a step's vectors of bytes."""
        column = step * self.across + index % self.across
        return self.memory[self.first + index // self.across, column]

    def unpack(self, index: Expr, word: Expr) -> list[tuple[Expr, Expr, Expr]]:
        """Return the two vectors that it becomes."""
        row, place = index // self.across, index % self.across * self.vectors
        found = halves([lane(word, c) for c in range(LANES)], signed=True)
        return [(row, place + v, vector) for v, vector in enumerate(found)]
