"""How the bytes of layers come to a device: in its memory, beside its kernels, or between them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .cuda import KIND as CUDA
from .memory_space import DeviceMemory, Tensor


@dataclass(frozen=True)
class Piece:
    """A part of a layer's file, and the tensor that it is copied to."""

    tensor: Tensor
    offset: int
    size: int


class Lane(Protocol):
    """How bytes come to a device."""

    def staging(self, size: int) -> np.ndarray:
        """Return memory of the host that copies are made from, uint8."""
        ...

    def send(self, slot: int, staged: np.ndarray, pieces: list[Piece]) -> None:
        """Begin to copy, after what `used` has noted; called by the reading thread."""
        ...

    def ready(self, slot: int) -> None:
        """See to it that what is computed from now on finds the copies made."""
        ...

    def used(self, slot: int) -> None:
        """Note what has been asked so far, which reads the slot's tensors."""
        ...

    def free(self, slot: int) -> None:
        """Wait until the slot's staging memory may be written again."""
        ...

    def places(self, pieces: list[Piece]) -> list[np.ndarray] | None:
        """Return the tensors' own memory, uint8, where the host may write it; else None.

        Where it may, it is read into at once: nothing is staged, sent or copied.
        """
        ...


class QueueLane:
    """Copies in the order of the kernels, which every backend has.

    Parameters
    ----------
    memory : DeviceMemory
        The device's.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._waiting: dict[int, tuple[np.ndarray, list[Piece]]] = {}

    def staging(self, size: int) -> np.ndarray:
        """Return ordinary memory."""
        return np.empty(size, np.uint8)

    def send(self, slot: int, staged: np.ndarray, pieces: list[Piece]) -> None:
        """Keep the copy for the thread that launches kernels."""
        self._waiting[slot] = staged, pieces

    def ready(self, slot: int) -> None:
        """Copy what waits."""
        staged, pieces = self._waiting.pop(slot, (None, []))
        for piece in pieces:
            assert staged is not None
            self._memory.write(piece.tensor, staged[piece.offset :][: piece.size])

    def used(self, slot: int) -> None:
        """Do nothing: copies keep the order."""

    def free(self, slot: int) -> None:
        """Return at once: a copy is made when `ready` returns."""

    def places(self, pieces: list[Piece]) -> list[np.ndarray] | None:
        """Return None."""
        return None


class UploadLane(QueueLane):
    """Copies by a queue of their own, beside the kernels, made by the reading thread."""

    def __init__(self, memory: DeviceMemory, mark: Any, upload: Any) -> None:
        super().__init__(memory)
        self._mark, self._upload = mark, memory.guarded(upload)
        self._marks: dict[int, Any] = {}

    def send(self, slot: int, staged: np.ndarray, pieces: list[Piece]) -> None:
        """Copy, once the kernels that read the slot before have run."""
        after = self._marks.pop(slot, None)
        for piece in pieces:
            source = ctypes.c_void_p(staged.ctypes.data + piece.offset)
            self._upload(piece.tensor, 0, source, piece.size, after)
            after = None

    def ready(self, slot: int) -> None:
        """Return at once: what was sent is there."""

    def used(self, slot: int) -> None:
        """Mark the place in the kernels' queue."""
        self._marks[slot] = self._mark(self._memory.index)


class SharedLane(QueueLane):
    """No copies: the host reads files into the memory that the device works on."""

    def __init__(self, memory: DeviceMemory, address: Any, settle: Any) -> None:
        super().__init__(memory)
        self._address, self._settle = address, memory.guarded(settle)

    def places(self, pieces: list[Piece]) -> list[np.ndarray] | None:
        """Return the tensors' memory, once no kernel uses it."""
        addresses = [self._address(piece.tensor) for piece in pieces]
        if not all(addresses):
            return None
        for piece in pieces:
            self._settle(piece.tensor)
        return [
            np.ctypeslib.as_array((ctypes.c_uint8 * piece.size).from_address(address))
            for piece, address in zip(pieces, addresses, strict=True)
        ]


def lane(memory: DeviceMemory) -> Lane:
    """Return the way to a device that costs its kernels least."""
    if memory.kind == CUDA:
        from .cuda.lane import CudaLane

        return CudaLane(memory.index)
    mark, upload, address, settle = (
        memory.optional(name) for name in ("mark", "upload", "address", "settle")
    )
    if address is not None:
        return SharedLane(memory, address, settle)
    return QueueLane(memory) if upload is None else UploadLane(memory, mark, upload)
