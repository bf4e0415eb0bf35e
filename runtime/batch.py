"""The arrays that the engine takes: rows of tokens, what follows each, where documents begin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Position i of a row attends to j with ``starts[i] <= j <= i`` and has the rotary position
    ``i - starts[i]``. Padding is token 0 with label -100 that attends to itself alone.

    Parameters
    ----------
    tokens : numpy.ndarray
        int32 [rows, context].
    labels : numpy.ndarray
        int32 [rows, context]: the token that follows, -100 where nothing is to be learned.
    starts : numpy.ndarray
        int32 [rows, context]: where in the row the document of each position begins.
    """

    tokens: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, rows: int, context: int) -> Batch:
        """Make a batch of padding alone."""
        shape = (rows, context)
        positions = np.broadcast_to(np.arange(context, dtype=np.int32), shape)
        return cls(np.zeros(shape, np.int32), np.full(shape, IGNORE, np.int32), positions.copy())
