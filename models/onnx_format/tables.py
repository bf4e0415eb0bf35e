"""Embedding and head as an ONNX file stores them, converted some rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...targets import FabricError
from ..config import ModelConfig

Read = Callable[[slice], npt.NDArray[np.floating]]
"""Gives some rows of a table, floating point [n, H]."""
_ROWS_AT_ONCE = 4096


def half_table(name: str, read: Read, config: ModelConfig) -> npt.NDArray[np.float16]:
    """Give a table in float16.

    Parameters
    ----------
    name : str
        To name in errors.
    read : callable
        Gives rows of the table, floating point [n, H].
    config : ModelConfig

    Raises
    ------
    FabricError
        Where a value is beyond float16's range.
    """
    table = np.empty((config.vocab_size, config.hidden_size), np.float16)
    with np.errstate(over="ignore"):
        for rows in _row_blocks(config.vocab_size):
            table[rows] = read(rows)
            if not np.isfinite(table[rows]).all():
                raise FabricError(
                    f"The tensor {name} holds values beyond float16's range.",
                    "Export with an int8 head: --head int8",
                )
    return table


def int8_table(
    read: Read, config: ModelConfig
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantise each row to int8 [V, H] with one float32 scale [V, 1]: max|row| / 127."""
    values = np.empty((config.vocab_size, config.hidden_size), np.int8)
    scales = np.empty((config.vocab_size, 1), np.float32)
    for rows in _row_blocks(config.vocab_size):
        table = np.asarray(read(rows), np.float32)
        largest = np.maximum(np.abs(table).max(axis=1, keepdims=True), np.float32(1e-8))
        scales[rows] = largest / np.float32(127)
        values[rows] = np.rint(table / scales[rows])
    return values, scales


def _row_blocks(rows: int) -> list[slice]:
    return [slice(i, min(i + _ROWS_AT_ONCE, rows)) for i in range(0, rows, _ROWS_AT_ONCE)]
