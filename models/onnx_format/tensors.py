"""One tensor of an ONNX file: where its bytes are, and what they mean."""

from __future__ import annotations

import math
import ntpath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, numpy_helper

from ..checkpoint import CheckpointError
from ..safetensors_files import widen

export_again = "Export or download the model again, with every file beside it."
_STORAGE: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.FLOAT16: "<f2",
    TensorProto.BFLOAT16: "<u2",
    TensorProto.DOUBLE: "<f8",
    TensorProto.INT8: "i1",
    TensorProto.UINT8: "u1",
    TensorProto.INT32: "<i4",
    TensorProto.INT64: "<i8",
    TensorProto.BOOL: "?",
}
_NIBBLES = (TensorProto.INT4, TensorProto.UINT4)
# What numpy has no type of its own for.
_WIDENED: dict[int, type] = {
    TensorProto.BFLOAT16: np.float32,
    TensorProto.INT4: np.int8,
    TensorProto.UINT4: np.uint8,
}


class StoredTensor:
    """A tensor inside the file, or beside it, where it is mapped and not read.

    Parameters
    ----------
    proto : onnx.TensorProto
    folder : pathlib.Path
        The folder of the model; tensors may lie in files of this folder only.

    Raises
    ------
    CheckpointError
        Where its bytes are missing, too few, elsewhere, or of a kind that fabric does not read.
    """

    def __init__(self, proto: TensorProto, folder: Path) -> None:
        self.name = proto.name
        self.shape = tuple(proto.dims)
        self.data_type = proto.data_type
        if any(size < 0 for size in self.shape) or len(self.shape) > 8:
            raise CheckpointError(
                f"Tensor {self.name} has the shape {list(self.shape)}.", export_again
            )
        self._proto = proto
        self._file: tuple[Path, int] | None = None
        if proto.data_location == TensorProto.EXTERNAL:
            self._file = self._external(folder)
        elif proto.HasField("raw_data") and self.readable:
            self._check_size(len(proto.raw_data))

    @property
    def readable(self) -> bool:
        """Whether the numbers are of a kind that fabric reads."""
        return self.data_type in _STORAGE or self.data_type in _NIBBLES

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        if self.data_type in _NIBBLES:
            return -(-self.size // 2)
        return self.size * np.dtype(_STORAGE[self.data_type]).itemsize

    @property
    def identity(self) -> tuple[Any, ...]:
        """What two tensors with the same bytes of the same file have in common."""
        return (self._file, self.shape, self.data_type) if self._file else (self.name,)

    def array(self) -> npt.NDArray[Any]:
        """Give the values, mapped where that is possible; bfloat16 becomes float32.

        Raises
        ------
        CheckpointError
            Where the values are of a kind that fabric does not read, or too few.
        """
        if not self.readable:
            names = {value: name for name, value in TensorProto.DataType.items()}
            kind = names.get(self.data_type, f"type {self.data_type}")
            raise CheckpointError(
                f"Tensor {self.name} is stored as {kind}, which fabric does not read.",
                "Export the model with another type of weights.",
            )
        if self._file is None and not self._proto.HasField("raw_data"):
            try:
                values = numpy_helper.to_array(self._proto)
            except (ValueError, TypeError) as error:
                raise self._too_short() from error
            widened = _WIDENED.get(self.data_type)
            return values if widened is None else values.astype(widened)
        if self.data_type in _NIBBLES:
            return self._nibbles()
        raw = self._raw(np.dtype(_STORAGE[self.data_type])).reshape(self.shape)
        return widen(raw) if self.data_type == TensorProto.BFLOAT16 else raw

    def _raw(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Give the stored numbers, flat and read-only."""
        if self._file is None:
            return np.frombuffer(self._proto.raw_data, dtype)
        if not self.nbytes:
            return np.empty(0, dtype)
        path, offset = self._file
        return np.memmap(path, dtype, "r", offset, (self.nbytes // dtype.itemsize,))

    def _nibbles(self) -> npt.NDArray[Any]:
        """Unpack 4-bit numbers, two a byte, the lower first."""
        raw = self._raw(np.dtype(np.uint8))
        values = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[: self.size]
        if self.data_type == TensorProto.INT4:
            values = (values ^ 8).astype(np.int8) - np.int8(8)
        return values.reshape(self.shape)

    def _external(self, folder: Path) -> tuple[Path, int]:
        """Give the file and the offset of a tensor beside the model."""
        entries = {entry.key: entry.value for entry in self._proto.external_data}
        location = entries.get("location", "")
        # Both kinds of separators and drives: a file may come from another system.
        if not location or ntpath.isabs(location) or ntpath.splitdrive(location)[0] or (
            ".." in location.replace("\\", "/").split("/")
        ):  # fmt: skip
            raise CheckpointError(
                f"Tensor {self.name} is said to lie in {location!r}, outside the model's folder.",
                export_again,
            )
        path = folder / location
        try:
            offset, file_size = int(entries.get("offset", "0")), path.stat().st_size
            length = int(entries.get("length", str(file_size - offset)))
        except ValueError as error:
            raise self._too_short() from error
        except OSError as error:
            raise CheckpointError(
                f"Tensor {self.name} is in {path}, which cannot be read.", export_again
            ) from error
        if offset < 0 or length < 0 or offset + length > file_size:
            raise self._too_short()
        if self.readable:
            self._check_size(length if "length" in entries else self.nbytes)
            if offset + self.nbytes > file_size:
                raise self._too_short()
        return path, offset

    def _check_size(self, stored: int) -> None:
        if stored != self.nbytes:
            raise self._too_short()

    def _too_short(self) -> CheckpointError:
        return CheckpointError(
            f"Tensor {self.name} is cut short or damaged: its bytes are not those of the shape "
            f"{list(self.shape)}.",
            export_again,
        )
