"""Our own packings of a ternary matrix, readable along both axes: 2 bits a weight, or 1.6.

A weight ``W[n, k]`` in {-1, 0, 1} is stored as the code ``W + 1``. Rows go by 16, columns by as
many as one 32-bit word holds of a row, so a matrix is ``(N / 16, ceil(K / columns), 16)`` words.
Inside a word four neighbouring columns are one digit of the word's four bytes: column ``c`` is
digit ``c // 4`` of byte ``c % 4``. The packings differ in what a byte is:

- ``"2bit"``: 16 columns a word; a byte has four digits of two bits, digit f at bit ``2 f``.
- ``"1.6bit"``: 20 columns a word; a byte has five digits of base 3. With ``v`` the number that
  they are, the first most significant, the byte is ``ceil(256 v / 243)``: the fraction ``v / 243``
  in 8 bits. Multiplied by 3 its high part is the first digit, and its low part the fraction of
  those that follow, as in TQ1_0 of llama.cpp. Columns past K hold the code 0, which adds nothing
  to a product of codes.

- One digit of all sixteen words of a place leaves, for each of 16 rows, the four bytes of four
  columns: the operand of an 8-bit dot product (``vpdpbusd``, ``sdot``, ``dp4a``), with the rows as
  lanes (the forward direction);
- one word broadcast to as many lanes as it has columns, each taking its own digit, is one row with
  the columns as lanes (the backward direction).

So one array serves ``y = W x`` and ``dx = W^T dy``; no transposed copy exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..targets import FabricError

DENSE = "dense"
"""Of a matrix that is not ternary: float16, two neighbouring columns a word, ``(N, K / 2)`` int32.

Words because a device that has no 16-bit floats has no kernels that name them either."""
TILE = 16
"""Rows of a place in a packed matrix; both sides of a matrix are multiples of it."""
BASE3_RANGE = 243
"""Numbers that five digits of base 3 have."""


@dataclass(frozen=True)
class Packing:
    """How the digits of a matrix become words.

    Attributes
    ----------
    name : str
        ``"2bit"`` or ``"1.6bit"``.
    digits : int
        Digits of a byte, each a column.
    """

    name: str
    digits: int

    @property
    def columns(self) -> int:
        """Columns of a word."""
        return 4 * self.digits

    def fold(self, digits: np.ndarray) -> np.ndarray:
        """Return the bytes ``(..., 4)`` of uint8 digits ``(..., digits, 4)``."""
        folded = np.zeros((*digits.shape[:-2], 4), np.uint8)
        if self is TWO_BIT:
            for digit in range(self.digits):
                folded |= digits[..., digit, :] << np.uint8(2 * digit)
            return folded
        for digit in range(self.digits):
            folded = folded * np.uint8(3) + digits[..., digit, :]
        table = -(-256 * np.arange(BASE3_RANGE) // BASE3_RANGE)
        return table.astype(np.uint8)[folded]

    def unfold(self, folded: np.ndarray) -> list[np.ndarray]:
        """Return the digits of uint8 bytes, one array each, the first first."""
        if self is TWO_BIT:
            return [(folded >> np.uint8(2 * digit)) & np.uint8(3) for digit in range(self.digits)]
        found, fraction = [], folded
        for _ in range(self.digits):
            found.append(((fraction.astype(np.uint16) * 3) >> 8).astype(np.uint8))
            fraction = fraction * np.uint8(3)
        return found


TWO_BIT = Packing("2bit", 4)
FIVE_TRITS = Packing("1.6bit", 5)
PACKINGS = {packing.name: packing for packing in (TWO_BIT, FIVE_TRITS)}


def packed_shape(rows: int, columns: int, packing: Packing = TWO_BIT) -> tuple[int, int, int]:
    """Return the int32 shape ``(rows / 16, words of a row, 16)`` of a packed matrix.

    Raises
    ------
    FabricError
        If a side is not a multiple of 16.
    """
    if rows % TILE or columns % TILE:
        raise FabricError(
            f"A ternary matrix of {rows} x {columns} can't be packed: both sides must be "
            f"multiples of {TILE}.",
            "Use a model whose hidden, head and feed-forward sizes are multiples of 16.",
        )
    return rows // TILE, -(-columns // packing.columns), TILE


def pack(codes: np.ndarray, packing: Packing = TWO_BIT) -> np.ndarray:
    """Pack a ternary matrix.

    Parameters
    ----------
    codes : numpy.ndarray
        ``(N, K)`` int8 with values -1, 0, 1.
    packing : Packing
        How.

    Returns
    -------
    numpy.ndarray
        The int32 words, of the shape that :func:`packed_shape` gives.
    """
    rows, words, _ = packed_shape(codes.shape[0], codes.shape[1], packing)
    digits = np.zeros((len(codes), words * packing.columns), np.uint8)
    digits[:, : codes.shape[1]] = codes + 1
    folded = packing.fold(digits.reshape(rows, TILE, words, packing.digits, 4))
    packed = np.ascontiguousarray(folded.transpose(0, 2, 1, 3)).view("<i4")
    return packed.reshape(rows, words, TILE)


def unpack(packed: np.ndarray, columns: int, packing: Packing = TWO_BIT) -> np.ndarray:
    """Return the ``(N, columns)`` int8 ternary matrix of a packed one."""
    rows, words, _ = packed.shape
    folded = np.ascontiguousarray(packed).view(np.uint8).reshape(rows, words, TILE, 4)
    digits = np.stack(packing.unfold(folded), axis=3).transpose(0, 2, 1, 3, 4)
    matrix = digits.reshape(rows * TILE, words * packing.columns)[:, :columns]
    return matrix.astype(np.int8) - np.int8(1)
