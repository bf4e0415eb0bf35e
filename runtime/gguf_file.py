"""GGUF files, version 2 and 3: metadata and small tensors, read and written without a library.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), everything little-endian: the
magic ``GGUF``, a version, the numbers of tensors and of metadata entries; the entries; name,
dimensions (innermost first), type and offset of every tensor; then, aligned, their bytes.

A runtime that must stay small reads adapters with this; what it does not trust it measures against
the size of the file before it allocates anything.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .files import FileError, atomic_write, read_error

MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_F32, _F16, _Q8_0, _BF16 = 0, 1, 8, 30
# Type: values of a block, bytes of a block.
_BLOCKS = {_F32: (1, 4), _F16: (1, 2), _Q8_0: (32, 34), _BF16: (1, 2)}


def is_gguf(path: Path) -> bool:
    """Tell whether a path is a file that begins as GGUF does."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def damaged(path: Path, reason: str) -> FileError:
    """Say that `path` is not the file it should be."""
    return FileError(
        f"{path} is damaged or no GGUF file: {reason}.",
        "Restore it from a copy, or convert or download it again.",
    )


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: shape as numpy has it, ggml's type, first byte in the file."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """A file's metadata, and its tensors when they are asked for.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    metadata : dict
        Numbers, strings and lists of them by key.
    tensors : dict of str to GgufTensor

    Raises
    ------
    FileError
        Where the file cannot be read, is cut short, or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise read_error(path, error) from error
        except ValueError as error:
            raise damaged(path, "it is empty") from error
        self._at = 0
        try:
            self._read()
        except (struct.error, UnicodeDecodeError) as error:
            raise damaged(path, "its header is cut short") from error

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """Give a tensor as float32, copied.

        Raises
        ------
        FileError
            Where it does not lie within the file, or is of a quantised type other than Q8_0.
        """
        tensor = self.tensors[name]
        if tensor.kind not in _BLOCKS:
            raise FileError(
                f"Tensor {name} in {self.path} is of ggml's type {tensor.kind}, which fabric "
                "reads from models only.",
                "Convert it to f32, f16, bf16 or q8_0.",
            )
        values, size = _BLOCKS[tensor.kind]
        count = 1
        for extent in tensor.shape:
            count *= extent
        if count < 1 or count % values or tensor.offset + count // values * size > len(self._map):
            raise damaged(self.path, f"tensor {name} does not lie within the file")
        raw = np.frombuffer(self._map, np.uint8, count // values * size, tensor.offset)
        return _widened(raw, tensor.kind).reshape(tensor.shape)

    def _read(self) -> None:
        if self._map[:4] != MAGIC:
            raise damaged(self.path, "it does not begin with GGUF")
        self._at = 4
        version, tensors, entries = self._take("IQQ")
        if version not in (2, 3):
            raise damaged(self.path, f"its version is {version}, and fabric reads 2 and 3")
        # The shortest entry has 13 bytes and the shortest tensor 24: larger numbers are lies.
        if entries * 13 + tensors * 24 > len(self._map):
            raise damaged(self.path, "it promises more than fits into the file")
        for _ in range(entries):
            key = self._string()
            self.metadata[key] = self._value(self._take("I")[0])
        found = [self._tensor() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise damaged(self.path, f"its alignment is {alignment}")
        start = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in found:
            if name in self.tensors:
                raise damaged(self.path, f"tensor {name} is there twice")
            self.tensors[name] = GgufTensor(shape, kind, start + offset)

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self._map, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def _string(self) -> str:
        (length,) = self._take("Q")
        if length > len(self._map) - self._at:
            raise damaged(self.path, "a string is longer than the file")
        self._at += length
        return self._map[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._take(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise damaged(self.path, f"an entry is of the unknown type {kind}")
        element, count = self._take("IQ")
        if element not in _SCALARS and element != _STRING:
            raise damaged(self.path, f"an array is of the type {element}")
        size = 8 if element == _STRING else struct.calcsize("<" + _SCALARS[element])
        if count * size > len(self._map) - self._at:
            raise damaged(self.path, "an array is longer than the file")
        if element == _STRING:
            return [self._string() for _ in range(count)]
        return list(self._take(f"{count}{_SCALARS[element]}"))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._take("I")
        if not 1 <= dimensions <= 4:
            raise damaged(self.path, f"tensor {name} has {dimensions} dimensions")
        extents = self._take(f"{dimensions}Q")
        kind, offset = self._take("IQ")
        return name, tuple(reversed(extents)), kind, offset


def _widened(raw: npt.NDArray[np.uint8], kind: int) -> npt.NDArray[np.float32]:
    """Give the flat float32 values of a tensor's bytes."""
    if kind == _BF16:
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if kind == _Q8_0:
        blocks = raw.reshape(-1, 34)
        scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
        return blocks[:, 2:].view(np.int8).astype(np.float32) * scales
    return raw.view("<f4" if kind == _F32 else "<f2").astype(np.float32)


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Write a file atomically, with float32 tensors; the same content gives the same bytes.

    Parameters
    ----------
    path : Path
    metadata : mapping
        str, bool, int (written as uint32) or float (as float32) by key, in this order.
    tensors : mapping of str to numpy.ndarray
        In this order.

    Raises
    ------
    FileError
        Where the disk is full or the file cannot be written.
    """
    head = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    head += [_text(key) + _entry(value) for key, value in metadata.items()]
    offset = 0
    for name, tensor in tensors.items():
        extents = struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *reversed(tensor.shape))
        head.append(_text(name) + extents + struct.pack("<IQ", _F32, offset))
        offset += -(-tensor.size * 4 // _ALIGNMENT) * _ALIGNMENT
    with atomic_write(path) as file:
        file.write(b"".join(head))
        for tensor in tensors.values():
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            file.write(np.ascontiguousarray(tensor, "<f4").data)
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _entry(value: str | bool | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    return struct.pack("<If", 6, value)
