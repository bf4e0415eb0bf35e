"""Reading packed ternary matrices into vectors; `schedules/ternary.py` describes their layout."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from ..ternary import TILE, Packing, power_of_three
from ..tir import Buffer, Expr, bind, constants, lanes_of, load, splat

CODES = 0x03030303
HALVES = 0x00FF00FF
"""The lower byte of each 16 bits."""


def row_words(packed: Buffer, row: Expr, place: Expr, lanes: int) -> Expr:
    """Return the words of rows ``row .. row + lanes - 1`` at a place; lanes divides 16."""
    return load(packed, row // TILE, place, row % TILE, lanes=lanes)


def digits(words: Expr, packing: Packing) -> list[Expr]:
    """Return the digits of int32 lanes of words, each as four codes 0, 1, 2 in a lane's bytes."""
    lanes = lanes_of(words)

    def constant(number: int) -> Expr:
        return splat(tirx.const(number, "int32"), lanes)

    if not packing.base3:
        shifted = [words >> constant(2 * f) if f else words for f in range(packing.digits)]
        return [bind(value & constant(CODES)) for value in shifted]
    # Bytes in 16 bits each: what is above a byte after the product with 3 is its digit.
    even = bind(words & constant(HALVES))
    odd = bind((words >> constant(8)) & constant(HALVES))
    found = []
    for digit in range(packing.digits):
        if digit:
            even, odd = bind(even & constant(HALVES)), bind(odd & constant(HALVES))
        even, odd = bind(even + even + even), bind(odd + odd + odd)
        low = (even >> constant(8)) & constant(CODES & HALVES)
        found.append(bind(low | (odd & constant(CODES & ~HALVES))))
    return found


def row_codes(packing: Packing, column: Expr, lanes: int) -> Callable[[Buffer, Expr], Expr]:
    """Return ``codes(packed, row)``, the codes of columns ``column .. column + lanes - 1`` of it.

    They are int32 lanes. `column` is a multiple of `lanes`, which divides 16. What depends on the
    columns alone is bound here, so that a loop over rows is spared it.
    """

    def constant(number: int) -> Expr:
        return splat(tirx.const(number, "int32"), lanes)

    first = bind(tirx.Cast("int32", column % packing.columns))
    place = bind(column // packing.columns)
    lane = constants(list(range(lanes)))
    byte = bind((lane & constant(3)) << constant(3))

    def word(packed: Buffer, row: Expr, at: Expr) -> Expr:
        return splat(packed[row // TILE, at, row % TILE], lanes)

    if not packing.base3:
        shift = bind(byte + splat(first // 2, lanes) + ((lane >> constant(2)) << constant(1)))
        return lambda packed, row: (word(packed, row, place) >> shift) & constant(3)
    digit = bind(splat(first // 4, lanes) + (lane >> constant(2)))
    # All bits of the lanes whose columns the next word holds.
    past = bind((constant(packing.digits - 1) - digit) >> constant(31))
    power = bind(power_of_three(bind(digit - (past & constant(packing.digits)))))
    last = bind((column + (lanes - 1)) // packing.columns)

    def codes(packed: Buffer, row: Expr) -> Expr:
        low, high = bind(word(packed, row, place)), bind(word(packed, row, last))
        words = low ^ ((low ^ high) & past)
        fraction = (((words >> byte) & constant(255)) * power) & constant(255)
        return (fraction * constant(3)) >> constant(8)

    return codes
