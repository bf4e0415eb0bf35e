"""Reading packed ternary matrices into vectors; `schedules/ternary.py` describes their layout."""

from __future__ import annotations

from tvm import tirx

from ..ternary import TILE
from ..tir import Buffer, Expr, constants, load, splat


def row_words(packed: Buffer, row: Expr, tile: Expr, lanes: int) -> Expr:
    """Return the words of rows ``row .. row + lanes - 1`` for 16 columns; lanes divides 16."""
    return load(packed, row // TILE, tile, row % TILE, lanes=lanes)


def column_codes(packed: Buffer, row: Expr, column: Expr, lanes: int) -> Expr:
    """Return the codes 0, 1, 2 of columns ``column .. column + lanes - 1`` of a row, int32 lanes.

    `column` is a multiple of `lanes`, which divides 16.
    """
    word = splat(packed[row // TILE, column // TILE, row % TILE], lanes)
    shifts = constants([8 * (k % 4) + 2 * (k // 4) for k in range(lanes)])
    # Inside a word the columns from `first` on sit first / 2 bits above those from 0 on.
    first = column % TILE
    if lanes < TILE:
        word = word >> splat(tirx.Cast("int32", first // 2), lanes)
    return (word >> shifts) & splat(tirx.const(3, "int32"), lanes)
