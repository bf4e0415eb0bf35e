"""Layers that a device holds for as long as they compute, copied there from the bundle's files.

A thread reads a file into memory of the host's, then the copy begins: on a device with a queue for
copies it runs beside the kernels, elsewhere in their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .bundle import Bundle, tensors_of
from .lanes import Piece, lane
from .memory_space import DeviceMemory, Windows
from .weight_reading import read_file, read_parts


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
        self._bundle, self._memory, self._lane = bundle, memory, lane(memory)
        self._tensors: list[list[Windows]] = []
        self._staged: list[np.ndarray | None] = []
        for layer in range(first, first + count):
            self._tensors.append(self._room(layer))
            self._staged.append(None)

    def _room(self, layer: int) -> list[Windows]:
        return [self._memory.room(array) for array in self._bundle.layers[layer].values()]

    def load(self, slot: int, layer: int) -> None:
        """Read a layer's file and begin its copy, see `layer_feed.Slots`."""
        self._lane.free(slot)
        if not self._tensors[slot]:
            self._tensors[slot] = self._room(layer)
            # Kernels that are yet to run may use what was in this memory before.
            self._lane.used(slot)
        pieces = self._pieces(slot, layer)
        places = self._lane.places(pieces)
        if places is not None:
            offsets = [piece.offset for piece in pieces]
            read_parts(self._bundle, 1 + layer, zip(offsets, places, strict=True))
            return
        staged = self._staged[slot]
        if staged is None:
            size = self._bundle.weight_file(1 + layer)[1].nbytes
            staged = self._staged[slot] = self._lane.staging(size)
        read_file(self._bundle, 1 + layer, staged)
        self._lane.send(slot, staged, pieces)

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

    def drop(self, slot: int, layer: int, whole: bool) -> bool:
        """Do nothing, for the next layer takes the same memory; `whole` frees it.

        Everything that reads the slot must have been computed then.
        """
        if whole:
            self._lane.ready(slot)
            self._memory.wait()
            self._tensors[slot] = []
        return whole

    def evict(self, layer: int, tensors: list[Windows]) -> list[Windows]:
        """Free a layer's tensors; everything that reads them must have been computed."""
        return []

    def restore(self, layer: int, tensors: list[Windows]) -> list[Windows]:
        """Read a layer's file and copy it to the device."""
        raw = np.empty(self._bundle.weight_file(1 + layer)[1].nbytes, np.uint8)
        read_file(self._bundle, 1 + layer, raw)
        arrays = tensors_of(raw, self._bundle.manifest["weights"][1 + layer])
        return [self._memory.constant(array) for array in arrays.values()]

    def drop_ends(self) -> None:
        """Do nothing: embedding and head stay on the device."""


def _pieces_of(spec: dict[str, Any], tensor: Windows) -> list[Piece]:
    """Return where the bytes of a tensor, or of its windows one after the other, stand."""
    parts = [tensor] if not isinstance(tensor, list) else tensor
    pieces, offset = [], spec["offset"]
    for part in parts:
        size = int(np.prod(tuple(part.shape))) * np.dtype(str(part.dtype)).itemsize
        pieces.append(Piece(part, offset, size))
        offset += size
    return pieces
