"""Embedding and head that stay in the bundle's file for as long as nothing needs them.

A micro-batch's tokens take a row of the embedding each, and these are read. The head is needed
once a step; while it computes, layers make room for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from .bundle import Bundle, tensors_of
from .layer_feed import LayerFeed
from .memory_space import DeviceMemory, MemorySpace, Tensor, Windows
from .weight_reading import read_file, read_parts

Calls = dict[str, Callable[..., Any]]
"""The compiled functions, by name."""


class Ends(Protocol):
    """Embedding and head as a step uses them."""

    def embedded(self, calls: Calls, tokens: Tensor, values: np.ndarray) -> Tensor:
        """Return the ``(T, H)`` embedding of tokens, given as a tensor and as values."""
        ...

    def head(self) -> AbstractContextManager[list[Windows]]:
        """Have both ends in memory, in the order of the functions."""
        ...


class HeldEnds:
    """Embedding and head that a device holds, or whose pages are mapped as they are used.

    Parameters
    ----------
    tensors : list
        The ends.
    feed : LayerFeed
        The layers that make room where it costs nothing.
    """

    def __init__(self, tensors: list[Windows], feed: LayerFeed) -> None:
        self._tensors, self._feed = tensors, feed

    def embedded(self, calls: Calls, tokens: Tensor, values: np.ndarray) -> Tensor:
        """Return the embedding, from the whole table."""
        with self._feed.ends():
            return calls["embed"](tokens, *self._tensors)

    @contextmanager
    def head(self) -> Iterator[list[Windows]]:
        """Return the tensors."""
        with self._feed.ends():
            yield self._tensors


class HostEnds:
    """Embedding and head of a bundle, see above.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    memory : MemorySpace
        Where the functions compute.
    feed : LayerFeed
        The layers that make room.
    tokens : int
        T, of a micro-batch.
    """

    def __init__(self, bundle: Bundle, memory: MemorySpace, feed: LayerFeed, tokens: int) -> None:
        self._bundle, self._memory, self._feed, self._count = bundle, memory, feed, tokens
        table = bundle.ends["embedding"]
        scale = bundle.ends.get("embedding_scale")
        # The scales of all rows are less than a row in a hundred; they stay.
        self._scales = None if scale is None else np.array(scale)
        self._rows = memory.zeros((tokens, table.shape[1]), str(table.dtype))
        self._scale = None if scale is None else memory.zeros((tokens,))
        self._which = memory.zeros((tokens,), "int32")
        self._which.write(np.arange(tokens, dtype=np.int32))

    def embedded(self, calls: Calls, tokens: Tensor, values: np.ndarray) -> Tensor:
        """Return the embedding, from the rows that the tokens take.

        Raises
        ------
        FabricError
            If they can't be read.
        """
        spec = next(s for s in self._specs if s["name"] == "embedding")
        width = spec["shape"][1]
        rows = np.empty((self._count, width), spec["dtype"])
        size = width * rows.itemsize
        # As the kernel does, which reads the first row for a token that is none.
        places = np.clip(values.reshape(-1), 0, spec["shape"][0] - 1)
        data = rows.view(np.uint8).reshape(self._count, size)
        offsets = [spec["offset"] + int(place) * size for place in places]
        read_parts(self._bundle, 0, zip(offsets, data, strict=True))
        self._rows.write(rows)
        found = [self._which.tensor, self._rows.tensor]
        if self._scale is not None and self._scales is not None:
            self._scale.write(self._scales[places])
            found.append(self._scale.tensor)
        return calls["embed_rows"](*found)

    @property
    def _specs(self) -> list[dict[str, Any]]:
        return self._bundle.manifest["weights"][0]["tensors"]

    @contextmanager
    def head(self) -> Iterator[list[Windows]]:
        """Have both ends in memory, in the order of the functions, and the room for them.

        Raises
        ------
        FabricError
            If they can't be read.
        """
        with self._feed.ends(evict=True):
            yield self._tensors()

    def _tensors(self) -> list[Windows]:
        if not isinstance(self._memory, DeviceMemory):
            return [self._memory.constant(array) for array in self._bundle.ends.values()]
        raw = np.empty(self._bundle.weight_file(0)[1].nbytes, np.uint8)
        read_file(self._bundle, 0, raw)
        arrays = tensors_of(raw, self._bundle.manifest["weights"][0])
        return [self._memory.constant(array) for array in arrays.values()]
