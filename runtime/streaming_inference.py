"""Writing with layers that are read while the one before computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bundle import Bundle
from .engine import Tensors
from .inference import InferenceEngine
from .layer_feed import LayerFeed
from .memory_space import Tensor, Windows


class StreamingInferenceEngine(InferenceEngine):
    """An inference engine over a `LayerFeed`, see `InferenceEngine`.

    Parameters
    ----------
    bundle, adapters, capacity, batch
        See `InferenceEngine`.
    resident : int
        Layers that stay in memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        adapters: Sequence[tuple[Tensors, float]] = (),
        capacity: int = 2048,
        batch: int = 1,
        *,
        resident: int,
    ) -> None:
        self._resident = resident
        super().__init__(bundle, adapters, capacity, batch)

    def _open(self, ends: list[Windows], adapters: list[list[Tensor]]) -> None:
        self._ends, self._adapters = ends, adapters
        self.feed = LayerFeed(self.bundle, self._memory, self._resident)
        names = ("prefill_embed", "prefill_layer", "prefill_head")
        self._calls = {name: self._machine[name] for name in names}

    def _bind(self, rope: Tensor) -> None:
        """Keep the table: the functions of one layer are given the cache at each call."""
        self._rope = rope

    def _unbind(self) -> None:
        """Return: nothing is bound."""

    def decode(self, token: int) -> np.ndarray:
        """Append one token to sequence 0 and return the ``(V,)`` float32 logits after it."""
        return self._append([token], 0, every=False)[-1]

    def _logits(self, tokens: Tensor, sequence: Tensor, position: Tensor, select: Tensor) -> Tensor:
        with self.feed.ends():
            x = self._calls["prefill_embed"](tokens, *self._ends)
        for layer, weights in self.feed.visit(range(len(self._caches))):
            state = [*self._adapters[layer], *self._caches[layer]]
            x = self._calls["prefill_layer"](x, sequence, position, self._rope, *weights, *state)
        with self.feed.ends():
            return self._calls["prefill_head"](x, select, *self._ends)
