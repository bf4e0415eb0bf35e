"""Adapters merged into a model's weights: exactly, as ordinary matrices, or back into ternary ones.

An adapter adds ``scale * B A`` to a matrix ``s W`` with ternary ``W``. The sum is no longer
ternary. As an ordinary matrix it is exact, but then its input is not quantised to 8 bits, as that
of a BitLinear is: the merged model computes what the base would without that rounding. Rounded
back to ternary, it loses what is smaller than half a step, which is most of a usual adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .checkpoint import ALL_ROWS, Checkpoint, TernaryWeight
from .config import MODULES

Floats = npt.NDArray[np.float32]
Factors = tuple[Floats, Floats, float]
"""lora_A [r, K], lora_B [N, r] and the scale of one adapter on one matrix."""
Updates = Mapping[tuple[int, str], Sequence[Factors]]
"""The adapters on each matrix, by layer and module."""
_ROUNDS = 20


def merged_matrix(model: Checkpoint, updates: Updates, layer: int, module: str) -> Floats:
    """Give ``s W + Σ scale B A``, float32 [N, K], the sum of the adapters in float64."""
    weight = model.ternary(layer, module)
    matrix = weight.codes.astype(np.float32) * np.float32(weight.scale)
    for a, b, scale in updates.get((layer, module), ()):
        matrix += (scale * (b.astype(np.float64) @ a.astype(np.float64))).astype(np.float32)
    return matrix


def requantise(
    matrix: Floats, scale: float, storable: Callable[[float], float] = float
) -> TernaryWeight:
    """Give the ternary matrix and scale that are nearest to a matrix in the least squares.

    For a scale the best codes are ``clip(round(W / scale), -1, 1)``, for codes the best scale is
    ``<W, codes> / <codes, codes>``; the two take turns until nothing changes, from the base's own
    scale. (The mean magnitude, by which masters are quantised, would be wrong here: that of a
    ternary matrix is smaller than its scale by the share of zeros.)

    Parameters
    ----------
    matrix : numpy.ndarray
        float32 [N, K].
    scale : float
        Where to start, greater than zero.
    storable : callable
        Rounds a scale to what a file can hold.
    """
    codes = _round(matrix, scale)
    for _ in range(_ROUNDS):
        norm = int(np.count_nonzero(codes))
        inner = float(np.einsum("ij,ij->", matrix, codes.astype(np.float32), dtype=np.float64))
        if not norm or inner <= 0:
            break
        scale = inner / norm
        better = _round(matrix, scale)
        if np.array_equal(better, codes):
            break
        codes = better
    return TernaryWeight(codes, storable(scale))


def _round(matrix: Floats, scale: float) -> npt.NDArray[np.int8]:
    # Rounding W / scale to -1, 0 or 1 is comparing it with half a scale.
    half = np.float32(scale / 2)
    return (matrix > half).astype(np.int8) - (matrix < -half).astype(np.int8)


class MergedTernary(Checkpoint):
    """A model whose ternary matrices have taken in adapters, as far as ternary ones can.

    Parameters
    ----------
    base : Checkpoint
    updates : mapping
        The adapters.
    storable : callable
        Rounds a scale to what the file that will hold it can.
    """

    def __init__(
        self, base: Checkpoint, updates: Updates, storable: Callable[[float], float] = float
    ) -> None:
        super().__init__(base.name, base.config, base.tokenizer_files)
        self.base, self._updates, self._storable = base, updates, storable
        self._counts: dict[tuple[int, str], tuple[int, int]] = {}

    @property
    def changed_share(self) -> float:
        """Share of codes that are not the base's, of all the matrices given so far."""
        changed, total = np.sum(list(self._counts.values()), axis=0)
        return float(changed / total)

    def ternary(self, layer: int, module: str) -> TernaryWeight:
        """Give one matrix; see `Checkpoint.ternary`."""
        before = self.base.ternary(layer, module)
        if (layer, module) not in self._updates:
            self._counts[layer, module] = 0, before.codes.size
            return TernaryWeight(before.codes, self._storable(before.scale))
        matrix = merged_matrix(self.base, self._updates, layer, module)
        after = requantise(matrix, before.scale, self._storable)
        changed = int(np.count_nonzero(after.codes != before.codes))
        self._counts[layer, module] = changed, before.codes.size
        return after

    def norm(self, name: str) -> npt.NDArray[np.float32]:
        """Give one norm, the base's."""
        return self.base.norm(name)

    def embedding(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give token vectors, the base's."""
        return self.base.embedding(rows)

    def head(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give the head's rows, the base's."""
        return self.base.head(rows)


def updates_of(
    adapters: Sequence[tuple[Mapping[tuple[int, str], tuple[Floats, Floats]], float]],
) -> dict[tuple[int, str], list[Factors]]:
    """Collect adapters, each as (A, B) by layer and module with its full scale, by matrix."""
    updates: dict[tuple[int, str], list[Factors]] = {}
    for factors, scale in adapters:
        for (layer, module), (a, b) in factors.items():
            if module not in MODULES:
                raise ValueError(module)
            updates.setdefault((layer, module), []).append((a, b, scale))
    return updates
