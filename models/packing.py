"""Our own packing of a ternary matrix: two bits a weight, readable along both axes.

A weight ``W[n, k]`` in {-1, 0, 1} is stored as the code ``W + 1``. The matrix is cut into tiles
of 16 rows by 16 columns; a tile is sixteen 32-bit words, one word for each row. Inside a word the
column ``k`` (0..15) sits at bit ``8 * (k % 4) + 2 * (k // 4)``:

- shifting all sixteen words of a tile by ``2 f`` and masking every byte with 3 leaves, for each
  of 16 rows, the four bytes of columns ``4 f .. 4 f + 3``: the operand of an 8-bit dot product
  (``vpdpbusd``, ``sdot``, ``dp4a``), with the rows as lanes (the forward direction);
- one word broadcast to 16 lanes and shifted lane by lane is one row with the columns as lanes
  (the backward direction).

So one array serves ``y = W x`` and ``dx = W^T dy``; no transposed copy exists.
"""

from __future__ import annotations

import numpy as np

from ..targets import FabricError

TILE = 16
"""Rows and columns of a packed tile; both sides of a matrix are multiples of it."""


def bit_offset(column: int) -> int:
    """Return the bit at which a tile's column starts inside its row's 32-bit word."""
    return 8 * (column % 4) + 2 * (column // 4)


def packed_shape(rows: int, columns: int) -> tuple[int, int, int]:
    """Return the int32 shape ``(rows / 16, columns / 16, 16)`` of a packed matrix.

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
    return rows // TILE, columns // TILE, TILE


def pack(codes: np.ndarray) -> np.ndarray:
    """Pack a ternary matrix.

    Parameters
    ----------
    codes : numpy.ndarray
        ``(N, K)`` int8 with values -1, 0, 1.

    Returns
    -------
    numpy.ndarray
        ``(N / 16, K / 16, 16)`` int32.
    """
    rows, columns, _ = packed_shape(*codes.shape)
    digits = (codes + 1).astype(np.uint8).reshape(rows, TILE, columns, 4, 4)
    # Fold the four fields of a byte first, in 8 bits: a quarter of the memory of a 32-bit fold.
    folded = digits[:, :, :, 0, :].copy()
    for field in range(1, 4):
        folded |= digits[:, :, :, field, :] << np.uint8(2 * field)
    words = np.ascontiguousarray(folded.transpose(0, 2, 1, 3)).view("<i4")
    return words.reshape(rows, columns, TILE)


def unpack(packed: np.ndarray) -> np.ndarray:
    """Return the ``(N, K)`` int8 ternary matrix of a packed ``(N / 16, K / 16, 16)`` int32."""
    rows, columns, _ = packed.shape
    folded = np.ascontiguousarray(packed).view(np.uint8).reshape(rows, columns, TILE, 4)
    fields = [(folded >> np.uint8(2 * field)) & np.uint8(3) for field in range(4)]
    digits = np.stack(fields, axis=3).transpose(0, 2, 1, 3, 4)
    return digits.reshape(rows * TILE, columns * TILE).astype(np.int8) - np.int8(1)
