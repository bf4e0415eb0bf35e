"""Ternary codes in the blocks of `MatMulNBits`, exact although that operator quantises its input.

com.microsoft.MatMulNBits stores row n of a matrix in blocks of columns, each value an unsigned
number of `bits` bits, lowest bits first, with ``2 ** (bits - 1)`` as zero. Where it is fast it also
turns the activations of a block into int8, by ``round(x * 127 / max|x|)``. Ours are whole numbers
from -127 to 127 already; they pass unharmed if every block holds a 127. So the last column of every
block is a guard: the activation there is the constant 127, the weight is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 128
"""Columns of a block, with its guard; the largest for which onnxruntime has a 2-bit kernel."""
GUARD = 127.0
"""The activation at a guard column, the largest that a token has."""


@dataclass(frozen=True)
class GuardedColumns:
    """Where the columns of a matrix lie in blocks with guards.

    Attributes
    ----------
    columns : int
        K of the matrix.
    block : int
        Columns of a block, one of them the guard.
    """

    columns: int
    block: int = BLOCK

    @property
    def payload(self) -> int:
        """Columns of the matrix in one block."""
        return self.block - 1

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.columns // self.payload)

    @property
    def width(self) -> int:
        """Columns with guards and filling."""
        return self.blocks * self.block

    @property
    def filling(self) -> int:
        """Zero columns after the last of the matrix, before guards are set."""
        return self.blocks * self.payload - self.columns

    def insert(self, codes: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
        """Give int8 [N, width] of int8 [N, K], with zeros at guards and filling."""
        filled = np.pad(codes, ((0, 0), (0, self.filling)))
        blocks = filled.reshape(len(codes), self.blocks, self.payload)
        return np.pad(blocks, ((0, 0), (0, 0), (0, 1))).reshape(len(codes), self.width)

    def remove(self, levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undo `insert`, whatever the dtype."""
        blocks = levels.reshape(len(levels), self.blocks, self.block)[:, :, : self.payload]
        return np.ascontiguousarray(blocks.reshape(len(levels), -1)[:, : self.columns])


def pack(codes: npt.NDArray[np.int8], bits: int, block: int) -> npt.NDArray[np.uint8]:
    """Pack whole numbers as MatMulNBits takes them.

    Parameters
    ----------
    codes : numpy.ndarray
        int8 [N, K], K a multiple of `block`, each within ``[-2 ** (bits - 1), 2 ** (bits - 1))``.
    bits : int
        2, 4 or 8.
    block : int
        Columns of a block, a multiple of ``8 / bits``.

    Returns
    -------
    numpy.ndarray
        uint8 [N, K / block, block * bits / 8].
    """
    rows, columns = codes.shape
    each = 8 // bits
    digits = (codes.view(np.uint8) + np.uint8(1 << (bits - 1))).reshape(rows, -1, each)
    packed = np.zeros(digits.shape[:2], np.uint8)
    for place in range(each):
        packed |= digits[:, :, place] << np.uint8(bits * place)
    return packed.reshape(rows, columns // block, block // each)


def unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Give the stored unsigned numbers, uint8 [N, K], of uint8 [N, blocks, bytes]."""
    flat = packed.reshape(len(packed), -1)
    each, mask = 8 // bits, np.uint8((1 << bits) - 1)
    digits = np.empty((*flat.shape, each), np.uint8)
    for place in range(each):
        digits[:, :, place] = flat >> np.uint8(bits * place) & mask
    return digits.reshape(len(packed), -1)
