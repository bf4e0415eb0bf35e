"""Copies to a CUDA device beside its kernels, in a stream of their own."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .runtime import Runtime

_TO_DEVICE = 1
"""cudaMemcpyHostToDevice."""
_NON_BLOCKING = 1
"""A stream that does not wait for the default one, where the kernels run."""
_NO_TIMING = 2
"""cudaEventDisableTiming."""


class CopiedPart(Protocol):
    """What `device_slots.Piece` is."""

    @property
    def tensor(self) -> Any: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102


class CudaLane:
    """Page-locked memory and a stream for copies, see `device_slots.Lane`.

    The kernels' stream and this one wait for each other's events alone, never the host.

    Parameters
    ----------
    index : int
        The device.
    """

    def __init__(self, index: int) -> None:
        self._runtime, self._index = Runtime(), index
        self._runtime("cudaSetDevice", index)
        self._stream = ctypes.c_void_p()
        self._runtime("cudaStreamCreateWithFlags", ctypes.byref(self._stream), _NON_BLOCKING)
        self._copied: dict[int, ctypes.c_void_p] = {}
        self._read: dict[int, ctypes.c_void_p] = {}
        self._pinned: list[ctypes.c_void_p] = []

    def staging(self, size: int) -> np.ndarray:
        """Return page-locked memory, which the device copies from without the processor."""
        place = ctypes.c_void_p()
        self._runtime("cudaHostAlloc", ctypes.byref(place), ctypes.c_size_t(size), 0)
        self._pinned.append(place)
        assert place.value is not None
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(place.value))

    def send(self, slot: int, staged: np.ndarray, pieces: Sequence[CopiedPart]) -> None:
        """Begin the copies, once the kernels that read the slot before have run."""
        self._runtime("cudaSetDevice", self._index)
        if slot in self._read:
            self._runtime("cudaStreamWaitEvent", self._stream, self._read[slot], 0)
        for piece in pieces:
            self._runtime(
                "cudaMemcpyAsync",
                ctypes.c_void_p(piece.tensor.data_ptr()),
                ctypes.c_void_p(staged.ctypes.data + piece.offset),
                ctypes.c_size_t(piece.size),
                _TO_DEVICE,
                self._stream,
            )
        self._record(self._copied, slot, self._stream)

    def ready(self, slot: int) -> None:
        """Let the kernels' stream wait for the copies."""
        self._runtime("cudaStreamWaitEvent", None, self._copied[slot], 0)

    def used(self, slot: int) -> None:
        """Note the kernels that were launched so far."""
        self._record(self._read, slot, None)

    def free(self, slot: int) -> None:
        """Wait until the last copy from the slot's staging memory is made."""
        if slot in self._copied:
            self._runtime("cudaEventSynchronize", self._copied[slot])

    def places(self, pieces: Sequence[CopiedPart]) -> list[np.ndarray] | None:
        """Return None: kernels read a device's own memory fastest."""
        return None

    def _record(
        self, events: dict[int, ctypes.c_void_p], slot: int, stream: ctypes.c_void_p | None
    ) -> None:
        if slot not in events:
            events[slot] = ctypes.c_void_p()
            self._runtime("cudaEventCreateWithFlags", ctypes.byref(events[slot]), _NO_TIMING)
        self._runtime("cudaEventRecord", events[slot], stream)

    def __del__(self) -> None:
        for events in (self._copied, self._read):
            for event in events.values():
                self._runtime.free("cudaEventDestroy", event)
        self._runtime.free("cudaStreamDestroy", self._stream)
        for place in self._pinned:
            self._runtime.free("cudaFreeHost", place)
