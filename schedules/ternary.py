"""Packed ternary matrices and the projections stacked in them, as every target's rules see them.

A matrix is ``(N / 16, W, 16)`` int32 of words that hold some columns of a row each as codes
``W + 1``: four neighbouring columns are one digit of the word's four bytes. In the 2-bit packing
these are four digits of two bits, so 16 columns; in the 1.6-bit packing five of base 3, so 20:
a byte is a fraction in 8 bits, whose product with 3 is the first digit and, in its low part, the
fraction of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from .tir import Expr, lanes_of, splat

TILE = 16
"""Rows of a place in a packed matrix, and what the columns of a matrix are a multiple of."""


@dataclass(frozen=True)
class Packing:
    """How a matrix is packed.

    Attributes
    ----------
    digits : int
        Digits of a byte: 4 of two bits, or 5 of base 3.
    """

    digits: int

    @classmethod
    def of(cls, parameters: dict[str, Any]) -> Packing:
        """Return the packing of a group's matrix from its kernels' static parameters."""
        return cls(5 if str(parameters.get("packing", "")) == "1.6bit" else 4)

    @property
    def base3(self) -> bool:
        """Whether the digits are of base 3."""
        return self.digits == 5

    @property
    def columns(self) -> int:
        """Columns of a word."""
        return 4 * self.digits

    def words(self, columns: int) -> int:
        """Return the words of a row of so many columns."""
        return -(-columns // self.columns)


TWO_BIT = Packing(4)


def power_of_three(exponent: Expr) -> Expr:
    """Return 3 to the power of an int32 scalar or vector of 0 to 4, without a branch."""

    def bit(value: int, factor: int) -> Expr:
        lanes = lanes_of(exponent)
        one, mask, scale = (splat(tirx.const(c, "int32"), lanes) for c in (1, value, factor))
        return one + scale * (exponent & mask)

    return bit(1, 2) * bit(2, 4) * bit(4, 20)


@dataclass(frozen=True)
class Segment:
    """One projection of a group.

    Attributes
    ----------
    index : int
        Its place in the group, and of its scale.
    begin, end : int
        Its rows of the stacked matrix.
    adapter : int or None
        Its place in the adapters' factor A, None where it has no adapter.
    column : int
        Its first column of the adapters' factor B.
    """

    index: int
    begin: int
    end: int
    adapter: int | None
    column: int


def segments(parameters: dict[str, Any]) -> list[Segment]:
    """Return the projections of a group from its kernels' static parameters."""
    found: list[Segment] = []
    row, adapter, column = 0, 0, 0
    pairs = zip(parameters["outputs"], parameters["adapted"], strict=True)
    for index, (size, adapted) in enumerate((int(s), bool(int(a))) for s, a in pairs):
        found.append(Segment(index, row, row + size, adapter if adapted else None, column))
        row += size
        if adapted:
            adapter, column = adapter + 1, column + size
    return found


def aligned(parts: list[Segment]) -> bool:
    """Return whether every projection begins with a packed tile, which the rules need."""
    return all(part.begin % TILE == 0 and part.end % TILE == 0 for part in parts)


def by_segment(parts: list[Segment], row: Expr, value: Callable[[Segment], Any]) -> Expr:
    """Select at run time ``value(segment)`` of the segment that holds a row."""
    chosen = value(parts[-1])
    for part in reversed(parts[:-1]):
        chosen = tirx.Select(row < part.end, value(part), chosen)
    return chosen
