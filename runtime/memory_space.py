"""Where tensors live: this process's own memory, or a device's.

The engines see one interface. On the processor a tensor is a numpy array's own memory and nothing
is ever copied; on a device every tensor is the device's, and reading and writing are transfers.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..targets import FabricError
from ..targets.ffi import tvm_ffi
from ..targets.windows import windows
from .blocks import Block, DeviceBlock, HostBlock, SplitBlock, aligned
from .device_calls import Repeated, device_error

Tensor: TypeAlias = "tvm_ffi.Tensor"
Windows: TypeAlias = "Tensor | list[Tensor]"
"""A tensor, or its windows in order where a device's kernels can't address it as a whole."""
MIB = 1 << 20


STAGED = 64 << 10
"""Bytes that a backend copies at once when it is asked to write them."""


class MemorySpace(Protocol):
    """Memory that compiled functions work on.

    Attributes
    ----------
    limit : int
        Bytes of the largest tensor that they address.
    """

    limit: int

    def constant(self, array: np.ndarray) -> Windows:
        """Return a tensor, or its windows, of an array that nothing will write to."""
        ...

    def zeros(self, shape: Sequence[int], dtype: str = "float32") -> Block:
        """Allocate a block of zeros."""
        ...

    def empty(self, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        """Allocate a tensor whose values do not matter."""
        ...

    def own(self, tensor: Tensor) -> Tensor:
        """Return what a function gave in memory that no other function is given."""
        ...

    def read(self, tensor: Windows) -> np.ndarray:
        """Return the values of what a function gave, waiting for it."""
        ...

    def wait(self) -> None:
        """Wait for everything that functions were asked to compute."""
        ...

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose failures on a device are sentences for people."""
        ...

    def repeated(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return a call of a function whose arguments, sizes and results stay in their places."""
        ...

    def peak_mib(self) -> float:
        """Return the most memory of the device held at once, MiB; 0 for the processor's own."""
        ...

    def keep_within(self, budget: int) -> None:
        """Refuse from now on what would take more than so many bytes of the device at once."""
        ...


class HostMemory:
    """The processor's memory."""

    limit = sys.maxsize

    def constant(self, array: np.ndarray) -> Tensor:
        """Return a tensor over an array's own memory."""
        return tvm_ffi.from_dlpack(array)

    def zeros(self, shape: Sequence[int], dtype: str = "float32") -> HostBlock:
        """Allocate a block of zeros; memory that nothing touches takes no room."""
        return HostBlock(aligned(shape, dtype))

    def empty(self, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        """Allocate a tensor, zeros as it happens."""
        return tvm_ffi.from_dlpack(aligned(shape, dtype))

    def own(self, tensor: Tensor) -> Tensor:
        """Return the tensor: nothing writes to it as long as it lives."""
        return tensor

    def read(self, tensor: Windows) -> np.ndarray:
        """Return an array over a tensor's memory."""
        assert not isinstance(tensor, list), "the processor's tensors are never split"
        return np.from_dlpack(tensor)

    def wait(self) -> None:
        """Return at once: the processor has finished when a function returns."""

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function."""
        return function

    def repeated(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return the function."""
        return function

    def peak_mib(self) -> float:
        """Return 0: the process's own peak says it."""
        return 0.0

    def keep_within(self, budget: int) -> None:
        """Do nothing: `budget.Watched` looks at the process."""


class DeviceMemory:
    """The memory of one device of a native backend.

    Parameters
    ----------
    kind : str
        ``"opencl"`` or ``"vulkan"``.
    index : int
        Which of the kind's devices.
    limit : int, optional
        Bytes of the largest buffer that the kernels address.
    branches : mapping, optional
        Which launches of a kernel need each other, as the bundle's manifest has it.

    Attributes
    ----------
    kind, index, limit
        As they were given.
    """

    def __init__(
        self,
        kind: str,
        index: int,
        limit: int = sys.maxsize,
        branches: Mapping[str, Any] | None = None,
    ) -> None:
        self._device = tvm_ffi.Device(kind, index)
        self.index, self.kind, self.limit = index, kind, limit
        self._allocate, self._from_bytes, self._to_bytes = (
            self.guarded(tvm_ffi.get_global_func(f"runtime.TVMTensor{name}"))
            for name in ("AllocWithScope", "CopyFromBytes", "CopyToBytes")
        )
        self.view, self.copy = (self.optional(name) for name in ("view", "copy"))
        self._write = tvm_ffi.get_global_func(f"bitfabric.{kind}.write")
        self._clear = tvm_ffi.get_global_func(f"bitfabric.{kind}.clear")
        self._refused = self.optional("refused")
        # Our own backends' launches follow each other.
        known = [json.dumps(branches)] if branches else []
        self._recorder = tvm_ffi.get_global_func(f"bitfabric.{kind}.recorder")(index, *known)
        self._probe = self.allocate((1,), "float32")

    def optional(self, name: str) -> Any:
        """Return a function of the backend's; None where it has none of the name."""
        return tvm_ffi.get_global_func(f"bitfabric.{self.kind}.{name}", allow_missing=True)

    def allocate(self, shape: Sequence[int], dtype: str) -> Tensor:
        """Allocate a tensor whose values do not matter yet.

        Raises
        ------
        FabricError
            If the device has no room for it, or the kernels can't address as much at once.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > self.limit:
            raise FabricError(
                f"A buffer of {size / MIB:,.1f} MiB is needed; the kernels of this bundle address "
                f"{self.limit / MIB:,.1f} MiB at once.",
                "Ask for fewer tokens or fewer sequences at once, or use adapters of less rank.",
            )
        extents, kind = tvm_ffi.Shape(tuple(shape)), tvm_ffi.dtype(dtype)
        return self._allocate(extents, kind, self._device, None)

    def constant(self, array: np.ndarray) -> Windows:
        """Copy an array to the device: as a tensor, or as its windows where it is large."""
        tensor = self.room(array)
        if not isinstance(tensor, list):
            self.write(tensor, array)
            return tensor
        flat, begin = array.reshape(-1), 0
        for part in tensor:
            shape = tuple(part.shape)
            self.write(part, flat[begin:][: math.prod(shape)].reshape(shape))
            begin += math.prod(shape)
        return tensor

    def room(self, array: np.ndarray) -> Windows:
        """Allocate a tensor, or its windows, of an array's shape and type."""
        shapes = windows(array.shape, str(array.dtype), self.limit)
        if shapes is None:
            return self.allocate(array.shape, str(array.dtype))
        return [self.allocate(shape, str(array.dtype)) for shape in shapes]

    def zeros(self, shape: Sequence[int], dtype: str = "float32") -> DeviceBlock:
        """Allocate a block of zeros."""
        block = (DeviceBlock if self.view is not None else SplitBlock)(self, shape, dtype)
        self._clear(block.tensor)
        return block

    def empty(self, shape: Sequence[int], dtype: str = "float32") -> Tensor:
        """Allocate a tensor of any values."""
        return self.allocate(shape, dtype)

    def own(self, tensor: Tensor) -> Tensor:
        """Return a copy, which is allocated here."""
        made = self.empty(tuple(tensor.shape), str(tensor.dtype))
        self.write(made, self.read(tensor))
        return made

    def write(self, tensor: Tensor, array: np.ndarray) -> None:
        """Copy an array to a tensor of its shape and dtype."""
        array = np.ascontiguousarray(array)
        if array.nbytes <= STAGED:
            # The backend copies it at once, so nothing is waited for.
            self._write(tensor, 0, ctypes.c_void_p(array.ctypes.data), array.nbytes)
            return
        self._from_bytes(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def read(self, tensor: Windows) -> np.ndarray:
        """Return a copy of a tensor, waiting for what computes it; windows come as one axis."""
        if not isinstance(tensor, tvm_ffi.Tensor):
            return np.concatenate([self.read(part).reshape(-1) for part in tensor])
        array = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self._to_bytes(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)
        return array

    def wait(self) -> None:
        """Wait for the device to finish."""
        self.read(self._probe)

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that raises `FabricError` where the device fails."""

        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except RuntimeError as error:
                raise device_error(error, self.refusal()) from error

        return call

    def repeated(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return a call that, from its third time on, launches its recorded kernels alone."""
        return Repeated(function, self._recorder, self.refusal)

    def peak_mib(self) -> float:
        """Return the most memory of the device held at once by this process, MiB."""
        found = json.loads(tvm_ffi.get_global_func(f"bitfabric.{self.kind}.memory")(self.index))
        return found["peak"] / 2**20

    def refusal(self) -> str:
        """Return why the allocator gave no memory, where an error does not say it; else ""."""
        refused = self._refused(self.index) if self._refused is not None else 0
        if not refused:
            return ""
        return f"The memory budget has no room for {refused / MIB:,.1f} MiB."

    def keep_within(self, budget: int) -> None:
        """Have the allocator refuse what would take more; Metal's has no bound."""
        bound = self.optional("budget")
        if bound is not None:
            bound(self.index, budget)
