"""Tensors that are read as numbers: norms, tables and masters, a slice of rows at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..checkpoint import ALL_ROWS
from ..safetensors_files import widen
from .blocks import dequantize_q6_k, dequantize_q8_0
from .header import GGUFError, TensorEntry
from .types import TENSOR_TYPES, TYPE_IDS

FLOAT_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K")
_ROWS_AT_ONCE = 1024


def read_rows(
    entry: TensorEntry, data: npt.NDArray[np.uint8], rows: slice = ALL_ROWS
) -> npt.NDArray[np.floating]:
    """Read rows of a tensor: float16 stays, the rest becomes float32.

    Parameters
    ----------
    entry : TensorEntry
        One of `FLOAT_TYPES`.
    data : numpy.ndarray
        Its bytes, uint8, mapped.
    rows : slice
        Which of the first axis.

    Raises
    ------
    GGUFError
        Where a number is NaN or infinite.
    """
    kind = TENSOR_TYPES[TYPE_IDS[entry.type]]
    by_row = data.reshape(entry.shape[0], -1) if len(entry.shape) > 1 else data.reshape(1, -1)
    chosen = by_row[rows if len(entry.shape) > 1 else ALL_ROWS]
    width = chosen.shape[1] // kind.size * kind.values
    dtype = np.float16 if entry.type == "F16" else np.float32
    values = np.empty((len(chosen), width), dtype)
    for begin in range(0, len(chosen), _ROWS_AT_ONCE):
        block = np.ascontiguousarray(chosen[begin : begin + _ROWS_AT_ONCE])
        values[begin : begin + _ROWS_AT_ONCE] = _numbers(entry.type, block).reshape(-1, width)
    # Both extremes are finite, or some number is not.
    if not np.isfinite([values.min(initial=0), values.max(initial=0)]).all():
        raise not_finite(entry.name)
    return values if len(entry.shape) > 1 else values.reshape(-1)[rows]


def not_finite(name: str) -> GGUFError:
    """Give the error for a tensor with NaN or infinity."""
    return GGUFError(
        f"Tensor {name} holds NaN or infinity.",
        "Download or convert the file again; this copy is damaged.",
    )


def _numbers(kind: str, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.floating]:
    if kind == "F32":
        return data.view("<f4")
    if kind == "F16":
        return data.view("<f2")
    if kind == "BF16":
        return widen(data.view("<u2"))
    # Damaged factors make NaN, which the caller refuses by the tensor's name.
    with np.errstate(invalid="ignore", over="ignore"):
        return {"Q8_0": dequantize_q8_0, "Q6_K": dequantize_q6_k}[kind](data)
