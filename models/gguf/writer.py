"""Writes a GGUF file: metadata, then the tensors, each of which is made when it is written."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from .header import GGUFError
from .types import (
    ARRAY,
    BOOL,
    DEFAULT_ALIGNMENT,
    FLOAT32,
    I2_S_TAIL,
    INT32,
    MAGIC,
    STRING,
    TENSOR_TYPES,
    TYPE_IDS,
    UINT32,
    VERSION,
)


@dataclass(frozen=True)
class Block:
    """One tensor to write.

    Parameters
    ----------
    name : str
        Its name.
    type : str
        Its storage, a name of `types.TENSOR_TYPES`.
    shape : tuple of int
        As numpy has it, [rows, columns].
    chunks : callable
        Gives the stored bytes as arrays of any dtype, in order; called once, when the time comes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[np.ndarray]]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        stored = TENSOR_TYPES[TYPE_IDS[self.type]]
        tail = I2_S_TAIL if self.type == "I2_S" else 0
        return prod(self.shape) // stored.values * stored.size + tail


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    blocks: Sequence[Block],
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Write a GGUF file, whole or not at all.

    The bytes go to a hidden file beside `path`, reach the disk, and take the name by a rename.

    Parameters
    ----------
    path : pathlib.Path
        The file to make or replace.
    metadata : mapping
        Values are str, bool, int (stored as uint32, or int32 below zero), float (float32), a list
        of str, or a numpy array of int32 or float32.
    blocks : sequence of Block
        The tensors in the order of the file.
    progress : callable, optional
        Called with the fraction that is written.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    GGUFError
        Where the file cannot be written; whatever was at `path` is then untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                _write(file, metadata, blocks, progress or (lambda fraction: None))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise GGUFError(
            f"{path} could not be written: {reason[:1].lower()}{reason[1:]}.",
            "Check that the folder may be written and that the disk has room.",
        ) from error
    return path


def _write(
    file: IO[bytes],
    metadata: Mapping[str, Any],
    blocks: Sequence[Block],
    progress: Callable[[float], None],
) -> None:
    file.write(MAGIC + struct.pack("<IQQ", VERSION, len(blocks), len(metadata)))
    for key, value in metadata.items():
        file.write(_string(key))
        file.writelines(_value(value))
    offset = 0
    for block in blocks:
        file.write(_string(block.name) + struct.pack("<I", len(block.shape)))
        file.write(struct.pack(f"<{len(block.shape)}Q", *reversed(block.shape)))
        file.write(struct.pack("<IQ", TYPE_IDS[block.type], offset))
        offset += _padded(block.size)
    _pad(file)
    total, done = max(offset, 1), 0
    for block in blocks:
        start = file.tell()
        for chunk in block.chunks():
            file.write(np.ascontiguousarray(chunk).data)
        if file.tell() - start != block.size:
            raise ValueError(f"{block.name} gave {file.tell() - start} bytes, not {block.size}")
        _pad(file)
        done += _padded(block.size)
        progress(done / total)


def _value(value: Any) -> Iterator[bytes]:
    """Give the type and the bytes of one value of the metadata."""
    if isinstance(value, (str, bool, int, float)):
        kind, data = _scalar(value)
        yield struct.pack("<I", kind) + data
    elif isinstance(value, np.ndarray):
        kind = {np.dtype(np.int32): INT32, np.dtype(np.float32): FLOAT32}[value.dtype]
        yield struct.pack("<IIQ", ARRAY, kind, value.size)
        yield value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
    else:
        yield struct.pack("<IIQ", ARRAY, STRING, len(value))
        yield from map(_string, value)


def _scalar(value: str | bool | int | float) -> tuple[int, bytes]:
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, float):
        return FLOAT32, struct.pack("<f", value)
    return (UINT32, struct.pack("<I", value)) if value >= 0 else (INT32, struct.pack("<i", value))


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _pad(file: IO[bytes]) -> None:
    file.write(b"\0" * (-file.tell() % DEFAULT_ALIGNMENT))
