"""Tensors of a folder's safetensors files, memory-mapped, with bfloat16 and without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from .checkpoint import ALL_ROWS, CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

# How each dtype of the format lies in the file; numpy has no bfloat16, so its bits are mapped.
_STORAGE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "|u1"}
_DOWNLOAD_AGAIN = "Download the model again; the copy is incomplete or damaged."


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: its file, dtype by the format's name, shape, and first byte."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class TensorFiles:
    """All tensors of a model folder by name; each is mapped only while it is read.

    Parameters
    ----------
    folder : pathlib.Path
        Holds ``model.safetensors``, or ``model.safetensors.index.json`` and its shards.

    Raises
    ------
    CheckpointError
        Where there are no such files, or one is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.entries: dict[str, TensorEntry] = {}
        for path in _weight_files(folder):
            self.entries.update(_entries(path))

    def map(self, name: str) -> npt.NDArray[Any]:
        """Map a tensor as it is stored, read-only; bfloat16 as its bits, uint16."""
        entry = self.entries[name]
        storage = np.dtype(_STORAGE[entry.dtype])
        return np.memmap(entry.path, storage, "r", entry.offset, entry.shape)

    def floats(self, name: str, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Read rows of a floating-point tensor: float16 stays, the rest becomes float32.

        Raises
        ------
        CheckpointError
            Where the tensor is stored as integers, or holds NaN or infinity.
        """
        dtype = self.entries[name].dtype
        if dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(
                f"Tensor {name} is stored as {dtype}, not as floating point.",
                "Use a checkpoint that keeps this tensor in float32, float16 or bfloat16.",
            )
        values = widen(self.map(name)[rows]) if dtype == "BF16" else np.array(self.map(name)[rows])
        # One reduction and no mask as large as the tensor: both extremes are finite, or are not.
        if not np.isfinite([values.min(initial=0), values.max(initial=0)]).all():
            raise not_finite(name)
        return values


def widen(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Give the float32 values of bfloat16 bits: a bfloat16 is the upper half of a float32."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def not_finite(name: str) -> CheckpointError:
    """Give the error for a tensor with NaN or infinity."""
    return CheckpointError(f"Tensor {name} holds NaN or infinity.", _DOWNLOAD_AGAIN)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
    else:
        names = [SINGLE_FILE]
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no file {name}.",
                "Download the model with its .safetensors files; other formats of weights are not "
                "read.",
            )
    return [folder / name for name in names]


def _entries(path: Path) -> dict[str, TensorEntry]:
    try:
        # The library checks what would be unsafe to map: lengths, overlaps, the file's size.
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}.", _DOWNLOAD_AGAIN) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: TensorEntry(
            path, tensor["dtype"], tuple(tensor["shape"]), 8 + length + tensor["data_offsets"][0]
        )
        for name, tensor in header.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises
    ------
    CheckpointError
        Where the file is missing, is not JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.", _DOWNLOAD_AGAIN
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.", _DOWNLOAD_AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.", _DOWNLOAD_AGAIN)
    return value
