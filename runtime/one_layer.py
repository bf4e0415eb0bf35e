"""The gradients of one layer, where an update follows each layer's backward pass at once."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .engine import AdapterLayout
from .memory_space import MemorySpace, Tensor


class OneLayer:
    """A gradient buffer for one layer, where :class:`AdapterBuffer` has one for each."""

    def __init__(self, memory: MemorySpace, layout: AdapterLayout) -> None:
        self._block = memory.zeros((layout.size,))
        self._layout = layout

    @cached_property
    def flat(self) -> list[Tensor]:
        """The layer as a tensor."""
        return [self._block.tensor]

    @cached_property
    def factors(self) -> list[list[Tensor]]:
        """The factors of the layer as tensors."""
        parts = self._layout.factors
        return [[self._block.part(factor["offset"], factor["shape"]) for factor in parts]]

    def read(self) -> np.ndarray:
        """Return zeros: between two steps no gradient is kept."""
        return np.zeros((self._layout.layers, self._layout.size), np.float32)

    def write(self, values: np.ndarray | float) -> None:
        """Replace the values by a number."""
        self._block.write(np.broadcast_to(np.float32(values), (self._layout.size,)))
