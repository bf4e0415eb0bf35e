"""The header of a GGUF file: metadata and where each tensor lies, checked before it is believed.

Every count and length in the file is compared with the bytes that are left before anything of that
size is made, so a damaged or hostile header costs neither memory nor time. Arrays of numbers stay
in the mapped file; arrays of strings are decoded when they are asked for.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint import CheckpointError
from .types import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    I2_S_TAIL,
    MAGIC,
    SCALARS,
    STRING,
    TENSOR_TYPES,
    type_name,
)

# Far above every real file (a few dozen keys, 64 layers of a dozen tensors, 300,000 merges).
_MOST_ENTRIES = 1 << 16
_MOST_STRINGS = 1 << 22
_LONGEST_NAME = 1 << 16
_MOST_DIMENSIONS = 4
_LARGEST_ALIGNMENT = 1 << 20
_AGAIN = "Download or convert the file again; this copy is incomplete or damaged."


class GGUFError(CheckpointError):
    """A GGUF file is damaged, or holds what fabric does not read."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Parameters
    ----------
    name : str
        Its name in the file.
    type : str
        Its storage, such as ``TQ2_0``.
    shape : tuple of int
        As numpy has it, [rows, columns]; the file stores it reversed.
    offset, size : int
        Its first byte in the file, and its bytes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size: int


class StringArray:
    """Strings of the metadata, decoded one after another when they are asked for."""

    def __init__(self, data: mmap.mmap | bytes, offset: int, count: int, name: str) -> None:
        self._data, self._offset, self._count, self._name = data, offset, count, name

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        offset = self._offset
        for _ in range(self._count):
            (length,) = struct.unpack_from("<Q", self._data, offset)
            offset += 8 + length
            yield _text(self._data[offset - length : offset], self._name)


@dataclass(frozen=True)
class GGUFFile:
    """An open GGUF file: metadata by key, tensors by name, and the mapped bytes.

    A value of `metadata` is a str, bool, int or float; an array of numbers is a numpy array and
    one of strings a `StringArray`.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    data: mmap.mmap

    def bytes_of(self, name: str) -> npt.NDArray[np.uint8]:
        """Map a tensor's bytes, uint8 [size], read-only; nothing is read before it is used."""
        entry = self.tensors[name]
        return np.frombuffer(self.data, np.uint8, entry.size, entry.offset)


def open_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file and check its header.

    Raises
    ------
    GGUFError
        Where it is not GGUF, is cut short, contradicts itself, or holds a tensor type that fabric
        does not read.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        # mmap refuses an empty file with a ValueError.
        reason = getattr(error, "strerror", None) or "it is empty"
        raise GGUFError(f"{path} cannot be read: {reason}.", "Check the path.") from error
    metadata, tensors = _Reader(data, path).header()
    return GGUFFile(path, metadata, tensors, data)


class _Reader:
    """Walks through the header once; `offset` is where it stands."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path = data, path
        self.size, self.offset = len(data), 0

    def header(self) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
        if self.take(4, "the magic") != MAGIC:
            raise GGUFError(
                f"{self.path} is not a GGUF file.", "Give a .gguf file or a Hugging Face folder."
            )
        version = self.number("<I", "the version")
        if version not in (2, 3):
            big = version & 0xFFFF == 0
            what = "is for big-endian machines" if big else f"has the version {version}"
            raise GGUFError(
                f"{self.path} {what}, which fabric does not read.",
                "Convert the model again with a current program (GGUF version 3, little-endian).",
            )
        tensors = self.count(24, "tensors")
        entries = self.count(13, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self.string("a metadata key", _LONGEST_NAME)
            if key in metadata:
                raise self.damaged(f"the key {key[:80]!r} occurs twice")
            metadata[key] = self.value(self.number("<I", "a type"), key)
        found = [self.tensor() for _ in range(tensors)]
        return metadata, self.placed(found, _alignment(metadata, self))

    def take(self, count: int, what: str) -> bytes:
        """Give the next bytes."""
        if count > self.size - self.offset:
            raise self.damaged(f"it ends inside {what}")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def number(self, form: str, what: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, least: int, what: str) -> int:
        """Read a count of entries, each of which takes at least `least` bytes."""
        count = self.number("<Q", f"the number of {what}")
        if count > min(_MOST_ENTRIES, (self.size - self.offset) // least):
            raise self.damaged(f"it claims {count} {what}")
        return count

    def string(self, what: str, most: int | None = None) -> str:
        length = self.number("<Q", what)
        if length > (self.size - self.offset if most is None else most):
            raise self.damaged(f"{what} claims {length} bytes")
        return _text(self.take(length, what), what)

    def value(self, kind: int, key: str) -> Any:
        """Read one value of the metadata."""
        what = f"the value of {key[:80]!r}"
        if kind == STRING:
            return self.string(what)
        if kind == ARRAY:
            return self.array(what)
        if kind not in SCALARS:
            raise self.damaged(f"{what} has the unknown type {kind}")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()

    def array(self, what: str) -> Any:
        kind, count = self.number("<I", what), self.number("<Q", what)
        left = self.size - self.offset
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            if count > left // dtype.itemsize:
                raise self.damaged(f"{what} claims {count} numbers")
            values = np.frombuffer(self.data, dtype, count, self.offset) if count else np.empty(0)
            self.offset += count * dtype.itemsize
            return values
        if kind != STRING:
            raise self.damaged(f"{what} is an array of the type {kind}, which fabric does not read")
        if count > min(_MOST_STRINGS, left // 8):
            raise self.damaged(f"{what} claims {count} strings")
        strings = StringArray(self.data, self.offset, count, what)
        unpack, end = struct.Struct("<Q").unpack_from, self.size - 8
        for _ in range(count):
            if self.offset > end:
                raise self.damaged(f"it ends inside {what}")
            self.offset += 8 + unpack(self.data, self.offset)[0]
        if self.offset > self.size:
            raise self.damaged(f"it ends inside {what}")
        return strings

    def tensor(self) -> TensorEntry:
        """Read one tensor's entry; its offset is still relative to the data."""
        name = self.string("a tensor's name", _LONGEST_NAME)
        what = f"the entry of tensor {name[:80]!r}"
        dimensions = self.number("<I", what)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"tensor {name[:80]!r} claims {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions, what))[::-1]
        kind, offset = self.number("<I", what), self.number("<Q", what)
        if kind not in TENSOR_TYPES:
            raise GGUFError(
                f"Tensor {name} is stored as {type_name(kind)}, which fabric does not read.",
                "Use a file with "
                + ", ".join(entry.name for entry in TENSOR_TYPES.values())
                + " tensors only.",
            )
        return TensorEntry(
            name, type_name(kind), shape, offset, self.stored_size(name, kind, shape)
        )

    def stored_size(self, name: str, kind: int, shape: tuple[int, ...]) -> int:
        stored = TENSOR_TYPES[kind]
        total = prod(shape)
        if stored.name == "I2_S":
            blocked, tail = total, I2_S_TAIL
        else:
            blocked, tail = shape[-1], 0
        if not total or blocked % stored.values:
            raise self.damaged(
                f"tensor {name[:80]!r} of the shape {list(shape)} cannot be {stored.name}"
            )
        return total // stored.values * stored.size + tail

    def placed(self, found: list[TensorEntry], alignment: int) -> dict[str, TensorEntry]:
        """Make the tensors' offsets absolute; refuse those outside the file or on each other."""
        start = -(-self.offset // alignment) * alignment
        end = start
        tensors: dict[str, TensorEntry] = {}
        for entry in sorted(found, key=lambda entry: entry.offset):
            offset = start + entry.offset
            if offset % alignment or offset < end:
                raise self.damaged(f"tensor {entry.name[:80]!r} does not lie at a free place")
            end = offset + entry.size
            if end > self.size:
                raise GGUFError(
                    f"{self.path} ends inside tensor {entry.name}: {end} bytes are needed, "
                    f"{self.size} are there.",
                    _AGAIN,
                )
            if entry.name in tensors:
                raise self.damaged(f"tensor {entry.name[:80]!r} occurs twice")
            tensors[entry.name] = TensorEntry(
                entry.name, entry.type, entry.shape, offset, entry.size
            )
        return tensors

    def damaged(self, how: str) -> GGUFError:
        return GGUFError(f"{self.path} is damaged: {how}.", _AGAIN)


def _alignment(metadata: Mapping[str, Any], reader: _Reader) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    whole = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not whole or not 1 <= alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise reader.damaged("general.alignment is not a power of two")
    return alignment


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GGUFError(f"The file is damaged: {what} is not UTF-8.", _AGAIN) from error
