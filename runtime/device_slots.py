"""Layers that a device holds for as long as they compute, copied there from the bundle's files.

A thread reads a file into memory of the host's, then the copy begins: on a device with a queue for
copies it runs beside the kernels, elsewhere in their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .bundle import Bundle
from .cuda import KIND as CUDA
from .memory_space import DeviceMemory, Tensor, Windows
from .weight_errors import missing, unreadable


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


class QueueLane:
    """Copies in the order of the kernels: all that OpenCL and Vulkan are asked for.

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


class DeviceSlots:
    """Two layers' tensors on a device.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    memory : DeviceMemory
        The device's.
    count : int
        Slots.
    first : int
        The first layer that is streamed.
    """

    def __init__(self, bundle: Bundle, memory: DeviceMemory, count: int, first: int) -> None:
        self._bundle, self._lane = bundle, _lane(memory)
        self._tensors: list[list[Windows]] = []
        self._staged: list[np.ndarray] = []
        for layer in range(first, first + count):
            self._tensors.append([memory.room(a) for a in bundle.layers[layer].values()])
            self._staged.append(self._lane.staging(bundle.weight_file(1 + layer)[1].nbytes))

    def load(self, slot: int, layer: int) -> None:
        """Read a layer's file and begin its copy, see `layer_feed.Slots`."""
        self._lane.free(slot)
        staged = self._staged[slot]
        self._read(layer, staged)
        self._lane.send(slot, staged, self._pieces(slot, layer))

    def _read(self, layer: int, staged: np.ndarray) -> None:
        path, _ = self._bundle.weight_file(1 + layer)
        done = 0
        try:
            with path.open("rb", buffering=0) as file:
                while done < len(staged) and (count := file.readinto(staged[done:].data)):
                    done += count
        except OSError as error:
            raise unreadable(path.name, error) from error
        if done < len(staged):
            raise missing(path.name, done, len(staged))

    def _pieces(self, slot: int, layer: int) -> list[Piece]:
        specs = self._bundle.manifest["weights"][1 + layer]["tensors"]
        return [
            piece
            for spec, tensor in zip(specs, self._tensors[slot], strict=True)
            for piece in _pieces_of(spec, tensor)
        ]

    def tensors(self, slot: int, layer: int) -> list[Windows]:
        """Return the slot's tensors, with the layer in them."""
        self._lane.ready(slot)
        return self._tensors[slot]

    def used(self, slot: int) -> None:
        """Note what reads the slot."""
        self._lane.used(slot)

    def drop(self, slot: int, layer: int) -> bool:
        """Do nothing: the next layer takes the same memory."""
        return False

    def drop_ends(self) -> None:
        """Do nothing: embedding and head stay on the device."""


def _lane(memory: DeviceMemory) -> Lane:
    if memory.kind == CUDA:
        from .cuda.lane import CudaLane

        return CudaLane(memory.index)
    return QueueLane(memory)


def _pieces_of(spec: dict[str, Any], tensor: Windows) -> list[Piece]:
    """Return where the bytes of a tensor, or of its windows one after the other, stand."""
    parts = [tensor] if not isinstance(tensor, list) else tensor
    pieces, offset = [], spec["offset"]
    for part in parts:
        size = int(np.prod(tuple(part.shape))) * np.dtype(str(part.dtype)).itemsize
        pieces.append(Piece(part, offset, size))
        offset += size
    return pieces
