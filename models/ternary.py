"""Ternary codes from what checkpoints hold: masters in floating point, or packed bytes.

Packed layout of Hugging Face: uint8 [N / 4, K], packed along the rows; bits ``2i`` and ``2i + 1``
of byte row ``r`` hold ``code + 1`` of matrix row ``r + i * N / 4``. The bits 11 mean nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .checkpoint import TernaryWeight

CODES_PER_BYTE = 4
# Rows quantised at once: bounds the float32 copy of a matrix to some megabytes.
_BLOCK_ROWS = 256


def pack(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack codes as Hugging Face does.

    Parameters
    ----------
    codes : numpy.ndarray
        int8 [N, K] in {-1, 0, 1}, N a multiple of 4.

    Returns
    -------
    numpy.ndarray
        uint8 [N / 4, K].

    Raises
    ------
    ValueError
        Where N is not a multiple of 4.
    """
    rows, columns = codes.shape
    if rows % CODES_PER_BYTE:
        raise ValueError(f"{rows} rows do not pack into bytes of {CODES_PER_BYTE}")
    quarters = (codes + 1).astype(np.uint8).reshape(CODES_PER_BYTE, -1, columns)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def unpack(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Undo `pack`: uint8 [N / 4, K] to int8 [N, K]; the bits 11 become the code 2."""
    rows, columns = packed.shape
    codes = np.empty((CODES_PER_BYTE, rows, columns), np.int8)
    for quarter in range(CODES_PER_BYTE):
        np.subtract(packed >> 2 * quarter & 3, 1, out=codes[quarter], casting="unsafe")
    return codes.reshape(-1, columns)


def quantize_master(master: npt.NDArray[np.floating]) -> TernaryWeight:
    """Quantise a matrix by its mean magnitude, as BitNet b1.58 does in every forward pass.

    ``scale = max(mean|W|, 1e-5)`` and ``codes = clip(round(W / scale), -1, 1)``, ties to even, in
    float32; source: Ma et al., "The Era of 1-bit LLMs" (arXiv:2402.17764), equations 1 to 3.

    Parameters
    ----------
    master : numpy.ndarray
        Floating point [N, K]. NaN and infinity come out as a scale that is not finite.

    Returns
    -------
    TernaryWeight
        int8 codes [N, K], scale as the nearest float32.
    """
    blocks = [slice(i, i + _BLOCK_ROWS) for i in range(0, len(master), _BLOCK_ROWS)]
    # The sum is kept in float64, so the scale does not depend on the order of summation.
    total = sum(float(np.abs(master[block], dtype=np.float64).sum()) for block in blocks)
    scale = np.maximum(np.float32(total / master.size), np.float32(1e-5))
    inverse = np.float32(1) / scale
    codes = np.empty(master.shape, np.int8)
    if np.isfinite(scale):
        for block in blocks:
            scaled = np.rint(master[block].astype(np.float32) * inverse)
            codes[block] = np.clip(scaled, -1, 1)
    return TernaryWeight(codes, float(scale))


def is_ternary(codes: npt.NDArray[np.integer] | npt.NDArray[np.floating]) -> bool:
    """Tell whether every value is -1, 0 or 1 (NaN is not)."""
    return bool(np.isin(codes, (-1, 0, 1)).all())
