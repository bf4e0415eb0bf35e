"""Blocks: tensors that the host fills and reads, of its own memory or of a device's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..targets.ffi import tvm_ffi


class Block(Protocol):
    """A tensor that the host fills and reads."""

    tensor: tvm_ffi.Tensor

    def part(self, begin: int, shape: Sequence[int]) -> tvm_ffi.Tensor:
        """Return a part of a one-dimensional block, from an element on, as a tensor."""
        ...

    def read(self) -> np.ndarray:
        """Return the values: the memory itself where it is the processor's, else a copy."""
        ...

    def write(self, values: np.ndarray) -> None:
        """Replace the values, those of the parts as well."""
        ...

    def gather(self) -> None:
        """Take over what functions wrote to the parts, where these have memory of their own."""
        ...

    def scatter(self) -> None:
        """Hand what functions wrote to the whole on to such parts."""
        ...


class TensorStore(Protocol):
    """What a block asks of a device's memory."""

    view: Any
    copy: Any

    def allocate(self, shape: Sequence[int], dtype: str) -> tvm_ffi.Tensor:
        """Allocate a tensor."""
        ...

    def read(self, tensor: tvm_ffi.Tensor) -> np.ndarray:
        """Return a copy of a tensor."""
        ...

    def write(self, tensor: tvm_ffi.Tensor, array: np.ndarray) -> None:
        """Copy an array to a tensor."""
        ...


def aligned(shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Return a zeroed array whose data starts at a multiple of 64 bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


class HostBlock:
    """A block over an array's own memory: C-contiguous, 64-byte aligned."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.tensor = tvm_ffi.from_dlpack(array)

    def part(self, begin: int, shape: Sequence[int]) -> tvm_ffi.Tensor:
        """Return a part of a one-dimensional block as a tensor."""
        return tvm_ffi.from_dlpack(self._array[begin:][: math.prod(shape)].reshape(shape))

    def read(self) -> np.ndarray:
        """Return the memory itself."""
        return self._array

    def write(self, values: np.ndarray) -> None:
        """Replace the values."""
        self._array[...] = values

    def gather(self) -> None:
        """Return: the parts are of the same memory."""

    def scatter(self) -> None:
        """Return: the parts are of the same memory."""


class DeviceBlock:
    """A block of a device's memory."""

    def __init__(self, memory: TensorStore, shape: Sequence[int], dtype: str) -> None:
        self._memory, self._shape, self._dtype = memory, tuple(shape), dtype
        self.tensor = memory.allocate(shape, dtype)

    def part(self, begin: int, shape: Sequence[int]) -> tvm_ffi.Tensor:
        """Return a part of a one-dimensional block as a tensor of its own."""
        offset = begin * np.dtype(self._dtype).itemsize
        dtype = tvm_ffi.dtype(self._dtype)
        return self._memory.view(self.tensor, offset, tvm_ffi.Shape(tuple(shape)), dtype)

    def read(self) -> np.ndarray:
        """Return a copy of the values."""
        return self._memory.read(self.tensor)

    def write(self, values: np.ndarray) -> None:
        """Replace the values."""
        array = np.empty(self._shape, self._dtype)
        array[...] = values
        self._memory.write(self.tensor, array)

    def gather(self) -> None:
        """Return: the parts are of the same memory."""

    def scatter(self) -> None:
        """Return: the parts are of the same memory."""


class SplitBlock(DeviceBlock):
    """A block of a device whose kernels take whole buffers: its parts are tensors of their own."""

    def __init__(self, memory: TensorStore, shape: Sequence[int], dtype: str) -> None:
        super().__init__(memory, shape, dtype)
        self._parts: list[tuple[int, tvm_ffi.Tensor]] = []

    def part(self, begin: int, shape: Sequence[int]) -> tvm_ffi.Tensor:
        """Return a part as a tensor with memory of its own, the same one each time."""
        offset, extents = begin * np.dtype(self._dtype).itemsize, tuple(shape)
        for place, tensor in self._parts:
            if (place, tuple(tensor.shape)) == (offset, extents):
                return tensor
        tensor = self._memory.allocate(extents, self._dtype)
        self._parts.append((offset, tensor))
        self._memory.copy(self.tensor, offset, tensor, 0, tensor.shape)
        return tensor

    def write(self, values: np.ndarray) -> None:
        """Replace the values, those of the parts as well."""
        super().write(values)
        self.scatter()

    def read(self) -> np.ndarray:
        """Return a copy of the values, with those of the parts."""
        self.gather()
        return super().read()

    def gather(self) -> None:
        """Copy the parts to their places."""
        for offset, tensor in self._parts:
            self._memory.copy(tensor, 0, self.tensor, offset, tensor.shape)

    def scatter(self) -> None:
        """Copy their places to the parts."""
        for offset, tensor in self._parts:
            self._memory.copy(self.tensor, offset, tensor, 0, tensor.shape)
