"""The frozen tensors of the layers, of which memory holds some always and two of the others.

While a layer computes, the next one is read: on the processor into its page cache, from where the
mapped file is used in place and let go behind; on a device into page-locked memory and from there
into the slot of the layer before. A pass back and forth reads each layer once in each direction,
except for the two at either end, which are still there when it turns.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from .bundle import Bundle
from .device_slots import DeviceSlots
from .mapped_slots import MappedSlots
from .memory_space import DeviceMemory, MemorySpace, Windows

SLOTS = 2
"""Layers in memory beside those that stay: the one that computes and the next."""


@dataclass
class FeedTimes:
    """Where the time of reading goes, seconds since the feed was made.

    Attributes
    ----------
    reading : float
        Spent by the reading thread, with the copies that it makes itself.
    waiting : float
        Of it, the time for which the computing thread waited: the rest was hidden.
    bytes : int
        What was read.
    """

    reading: float = 0.0
    waiting: float = 0.0
    bytes: int = 0


class Slots(Protocol):
    """Memory for `SLOTS` layers."""

    def load(self, slot: int, layer: int) -> None:
        """Read a layer into a slot; called by a thread of its own.

        Raises
        ------
        FabricError
            If the file is shorter than it was, or can't be read.
        """
        ...

    def tensors(self, slot: int, layer: int) -> list[Windows]:
        """Return the tensors of a layer that was loaded, in the order of the functions."""
        ...

    def used(self, slot: int) -> None:
        """Note that everything so far that reads a slot has been asked for."""
        ...

    def drop(self, slot: int, layer: int, whole: bool) -> bool:
        """Let a layer go; return whether that frees memory before the slot is loaded again.

        With `whole` it does, everywhere.
        """
        ...

    def evict(self, layer: int, tensors: list[Windows]) -> list[Windows]:
        """Free the memory of a layer that stays otherwise; return its tensors until then."""
        ...

    def restore(self, layer: int, tensors: list[Windows]) -> list[Windows]:
        """Return the tensors of a layer that was evicted, in memory again.

        Raises
        ------
        FabricError
            If its file is shorter than it was, or can't be read.
        """
        ...

    def drop_ends(self) -> None:
        """Let embedding and head go, where they are read again when they are needed."""
        ...


class LayerFeed:
    """The layers of a bundle, in any order.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    memory : MemorySpace
        Where the functions compute.
    resident : int
        The first so many layers stay in memory.
    evicted : int
        The first so many of these make room for the head where it asks for it.

    Attributes
    ----------
    times : FeedTimes
        How much of the reading was hidden behind the computing.
    """

    def __init__(
        self, bundle: Bundle, memory: MemorySpace, resident: int, evicted: int = 0
    ) -> None:
        self._bundle, self._memory, self._evicted = bundle, memory, evicted
        self._resident: list[list[Windows]] = [
            [memory.constant(array) for array in layer.values()]
            for layer in bundle.layers[:resident]
        ]
        self._absent: set[int] = set()
        streamed = range(resident, len(bundle.layers))
        count = min(SLOTS, len(streamed))
        self._slots: Slots = (
            DeviceSlots(bundle, memory, count, resident)
            if isinstance(memory, DeviceMemory)
            else MappedSlots(bundle, memory, resident)
        )
        self._held: list[int | None] = [None] * count
        self._coming: dict[int, Future[None]] = {}
        self.times = FeedTimes()
        self._reader = ThreadPoolExecutor(1, "fabric-layers")

    def visit(self, order: Iterable[int]) -> Iterator[tuple[int, list[Windows]]]:
        """Yield layers with their tensors in an order; the next is read meanwhile.

        What is asked of the tensors must have been asked when the next layer is taken.

        Raises
        ------
        FabricError
            If a layer can't be read.
        """
        layers = list(order)
        first = len(self._resident)
        streamed = [layer for layer in layers if layer >= first]
        following = dict(pairwise(streamed))
        if streamed:
            self._fetch(streamed[0], current=None)
        for layer in layers:
            if layer < first:
                if layer in self._absent:
                    self._return(layer)
                yield layer, self._resident[layer]
                continue
            slot = self._arrived(layer)
            if layer in following:
                self._fetch(following[layer], current=layer)
            yield layer, self._slots.tensors(slot, layer)
            self._slots.used(slot)

    @contextmanager
    def ends(self, evict: bool = False) -> Iterator[None]:
        """Make room for embedding or head, where a layer's is room; they have gone at the end.

        Few tokens may map much of an embedding: the system maps what it has cached in one piece.

        Parameters
        ----------
        evict : bool
            Whether layers that stay in memory, and a device's slots, make room as well.

        Raises
        ------
        FabricError
            If a layer that is on its way can't be read.
        """
        if evict:
            # What is freed may be given out to a copy that does not wait for the kernels.
            self._memory.wait()
        for slot, layer in enumerate(self._held):
            if layer is not None:
                self._settle(layer)
                if self._slots.drop(slot, layer, evict):
                    self._held[slot] = None
        for layer in range(self._evicted if evict else 0):
            self._resident[layer] = self._slots.evict(layer, self._resident[layer])
            self._absent.add(layer)
        yield
        self._slots.drop_ends()

    def _return(self, layer: int) -> None:
        """Bring back a layer that made room."""
        self._resident[layer] = self._slots.restore(layer, self._resident[layer])
        self._absent.remove(layer)

    def _fetch(self, layer: int, current: int | None) -> None:
        """Begin to read a layer into a slot that holds no layer in use, unless it is there."""
        if layer in self._held:
            return
        free = [i for i, held in enumerate(self._held) if held is None]
        slot = free[0] if free else self._held.index(self._idle(current))
        if (old := self._held[slot]) is not None:
            self._settle(old)
            self._slots.drop(slot, old, whole=False)
        self._held[slot] = layer
        self._coming[layer] = self._reader.submit(self._load, slot, layer)

    def _load(self, slot: int, layer: int) -> None:
        """Read a layer, in the reading thread."""
        began = time.perf_counter()
        self._slots.load(slot, layer)
        self.times.reading += time.perf_counter() - began
        self.times.bytes += self._bundle.weight_file(1 + layer)[1].nbytes

    def _idle(self, current: int | None) -> int | None:
        """Return a layer that is not in use."""
        return next(held for held in self._held if held != current)

    def _arrived(self, layer: int) -> int:
        """Wait for a layer and return its slot."""
        self._fetch(layer, current=None)
        self._settle(layer)
        return self._held.index(layer)

    def _settle(self, layer: int) -> None:
        """Wait until a layer is read; one that could not be is in no slot."""
        coming = self._coming.pop(layer, None)
        if coming is None:
            return
        began = time.perf_counter()
        try:
            coming.result()
            self.times.waiting += time.perf_counter() - began
        except BaseException:
            self._held[self._held.index(layer)] = None
            raise
