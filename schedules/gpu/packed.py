"""The words of packed ternary matrices in a launch; `schedules/ternary.py` describes them.

There are two ways to read a matrix: word by word, by whoever takes the columns of a sum in that
order; and 16 columns of a row at a time, where these are what a kernel's tiles are made of. In the
1.6-bit packing the latter lie in up to two words.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..ternary import TILE, TWO_BIT, Packing, power_of_three
from ..tir import Buffer, Expr, bind
from .vectors import LANES, held, lane

BYTE_CODES = 0x03030303
HALVES = 0x00FF00FF
"""The lower byte of each 16 bits."""
COLUMNS = 16
"""Columns that are read at a time."""


class _Fractions:
    """A word of base 3 whose digits come out one after the other: its bytes in 16 bits each."""

    def __init__(self, word: Expr) -> None:
        self.even, self.odd = held(word & HALVES), held((word >> 8) & HALVES)

    def digit(self) -> Expr:
        """Return the next digit as four codes, and keep the fraction of those that follow."""
        even, odd = held(self.even * 3), held(self.odd * 3)
        self.even, self.odd = even & HALVES, odd & HALVES
        low = (even >> 8) & (BYTE_CODES & HALVES)
        return held(low | (odd & (BYTE_CODES & ~HALVES)))


def codes(word: Expr, packing: Packing = TWO_BIT) -> list[Expr]:
    """Return the codes of a packed word as bytes of words, four columns each."""
    if packing.base3:
        fractions = _Fractions(word)
        return [fractions.digit() for _ in range(packing.digits)]
    shifted = [word if f == 0 else word >> (2 * f) for f in range(packing.digits)]
    return [held(s & BYTE_CODES) for s in shifted]


class Columns:
    """A matrix read 16 columns of a row at a time.

    Parameters
    ----------
    packed : Buffer
        ``(N / 16, W, 16)`` int32.
    packing : Packing
        How it is packed.

    Attributes
    ----------
    dtype : str
        Of what :meth:`fetch` returns.
    """

    def __init__(self, packed: Buffer, packing: Packing) -> None:
        self.packed, self.packing = packed, packing
        self.dtype = "int32x2" if packing.base3 else "int32"

    def fetch(self, row: Expr, index: Expr) -> Expr:
        """Return what holds the columns from ``16 index`` on of a row."""
        high, low = row // TILE, row % TILE
        if not self.packing.base3:
            return self.packed[high, index, low]
        first, last = (
            self.packed[high, (COLUMNS * index + c) // self.packing.columns, low]
            for c in (0, COLUMNS - 1)
        )
        return T.call_pure_extern("int32x2", "(int2)", first, last)

    def codes(self, fetched: Expr, index: Expr) -> list[Expr]:
        """Return the codes of what was fetched as bytes of four words, four columns each."""
        if not self.packing.base3:
            return codes(fetched, self.packing)
        fetched, digits = bind(fetched), self.packing.digits
        # The first of the columns is this digit of the first word; 16 columns are 4 digits.
        skipped = bind(index * LANES % digits)
        first = _Fractions(lane(fetched, 0))
        power = bind(power_of_three(skipped))
        first.even, first.odd = ((v * power) & HALVES for v in (first.even, first.odd))
        second = _Fractions(lane(fetched, 1))
        found = []
        for i in range(LANES):
            if i:
                # The second word begins where the first one ends.
                ends = bind(skipped + i == digits)
                first.even = held(tirx.Select(ends, second.even, first.even))
                first.odd = held(tirx.Select(ends, second.odd, first.odd))
            found.append(first.digit())
        return found

    def word(self, fetched: Expr, index: Expr) -> Expr:
        """Return the codes of what was fetched as the word of a 2-bit matrix."""
        if not self.packing.base3:
            return fetched
        a, b, c, d = self.codes(fetched, index)
        return held(a | (b << 2) | (c << 4) | (d << 6))
