"""Reading and writing safetensors, byte for byte the same for the same content.

The format (https://huggingface.co/docs/safetensors): eight bytes, the length of the header as a
little-endian integer; the header, a JSON object of name -> dtype, shape, data_offsets, with the
free strings of `__metadata__`; then the tensors' bytes. We write it ourselves because the usual
library keeps metadata in a hash map, so the same adapter saved twice gives different files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .files import FileError, atomic_write, read_error

_NAMES = {"float32": "F32", "float16": "F16", "int32": "I32", "uint8": "U8"}
_DTYPES = {
    **{name: np.dtype(dtype).newbyteorder("<") for dtype, name in _NAMES.items()},
    "F64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}
_LONGEST_HEADER = 100_000_000


def write_tensors(
    path: Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file atomically.

    Parameters
    ----------
    path : Path
        The file to make or replace.
    tensors : mapping of str to numpy.ndarray
        float32, float16, int32 or uint8, of any shape; written in this order.
    metadata : mapping of str to str
        Free strings, written in this order.

    Raises
    ------
    FileError
        Where the disk is full or the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            stored = tensor.dtype.newbyteorder("<")
            file.write(np.ascontiguousarray(tensor, stored).data)


def read_tensors(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Read a safetensors file; the tensors stay on disk until they are touched.

    Returns
    -------
    tensors : dict of str to numpy.ndarray
        Read-only; bfloat16 comes as float32, everything else as it was saved.
    metadata : dict of str to str

    Raises
    ------
    FileError
        Where the file cannot be read, is cut short, or is no safetensors file.
    """
    header, start = _read_header(path)
    metadata = header.pop("__metadata__", {})
    size = path.stat().st_size
    tensors = {}
    for name, entry in header.items():
        try:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(int(n) for n in entry["shape"])
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"tensor {name} has a description we cannot read") from error
        if end - begin != math.prod(shape) * dtype.itemsize or begin < 0 or start + end > size:
            raise damaged(path, f"tensor {name} does not lie within the file")
        array: npt.NDArray[Any] = (
            np.memmap(path, dtype=dtype, mode="r", offset=start + begin, shape=shape)
            if end > begin
            else np.zeros(shape, dtype)
        )
        tensors[name] = _widen(array) if entry["dtype"] == "BF16" else array
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Read the free strings alone; raises as `read_tensors` does."""
    header, _ = _read_header(path)
    return {str(key): str(value) for key, value in header.get("__metadata__", {}).items()}


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Give the header and the offset at which the tensors begin."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, os.fstat(file.fileno()).st_size - 8):
                raise damaged(path, "its header is longer than the file")
            header = json.loads(file.read(length))
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:
        raise damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    return header, 8 + length


def _widen(bfloat16: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Turn bfloat16 bits, the upper half of a float32, into float32 of the same shape."""
    return (bfloat16.astype(np.uint32) << 16).view(np.float32)


def damaged(path: Path, reason: str) -> FileError:
    """Say that `path` is not the file it should be."""
    return FileError(
        f"{path} is damaged or no safetensors file: {reason}.",
        "Restore it from a copy, or remove it and make it again.",
    )
