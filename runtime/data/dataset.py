"""Rows in an order that the seed and the epoch fix, as the micro-batches of each step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..batch import Batch
from .documents import Corpus
from .packing import Row, fill, one_per_row, pack


class Dataset:
    """Documents laid into rows, and rows into micro-batches.

    Parameters
    ----------
    corpus : Corpus
        Documents of at most `context` positions.
    context : int
        Positions of a row, as compiled.
    micro_batch : int
        Rows of a micro-batch, as compiled.
    packed : bool
        Whether several documents share a row.
    room : int or None
        Positions of a row that may be used, at most `context`; all of them by default.
    """

    def __init__(
        self,
        corpus: Corpus,
        context: int,
        micro_batch: int,
        *,
        packed: bool,
        room: int | None = None,
    ) -> None:
        self.corpus = corpus
        self.context = context
        self.micro_batch = micro_batch
        self.rows: list[Row] = (
            pack(corpus.positions.tolist(), room or context) if packed else one_per_row(corpus)
        )

    def __len__(self) -> int:
        return len(self.rows)

    def micro_batches(self, rows: Sequence[int]) -> Iterator[Batch]:
        """Give rows as micro-batches; the last is filled up with padding."""
        for begin in range(0, len(rows), self.micro_batch):
            batch = Batch.empty(self.micro_batch, self.context)
            for index, row in enumerate(rows[begin : begin + self.micro_batch]):
                fill(batch, index, self.corpus, self.rows[row])
            yield batch

    def count(self, rows: Sequence[int]) -> tuple[int, int]:
        """Count the tokens of rows.

        Returns
        -------
        tokens : int
            Positions that hold a token and no padding.
        labelled : int
            Positions with a loss.
        """
        bounds, learned = self.corpus.bounds, self.corpus.learned
        tokens = labelled = 0
        for document in (document for row in rows for document in self.rows[row]):
            begin, end = int(bounds[document]), int(bounds[document + 1])
            tokens += end - begin - 1
            labelled += int(np.count_nonzero(learned[begin + 1 : end]))
        return tokens, labelled


class Order:
    """Which rows each optimizer step sees: a fresh permutation of all rows every epoch.

    It is a function of the seed and the step alone, so that a resumed run needs no saved position.

    Parameters
    ----------
    rows : int
        Rows of the data set.
    rows_per_step : int
        Rows of an optimizer step.
    seed : int
    """

    def __init__(self, rows: int, rows_per_step: int, seed: int) -> None:
        self._rows = rows
        self._rows_per_step = rows_per_step
        self._seed = seed
        self.steps_per_epoch = math.ceil(rows / rows_per_step)
        self._epoch = -1
        self._permutation: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def rows_of(self, step: int) -> list[int]:
        """Give the rows of a step, counted from 1."""
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._permutation, self._epoch = generator.permutation(self._rows), epoch
        begin = index * self._rows_per_step
        return [int(row) for row in self._permutation[begin : begin + self._rows_per_step]]

    def epoch_of(self, step: int) -> float:
        """Give how many epochs are done after `step`, with its fraction."""
        return step / self.steps_per_epoch


def dropout_seed(seed: int, step: int, micro_step: int) -> int:
    """Give the seed of one micro-batch's dropout, 0 to 2**31 - 1, from its place alone."""
    word = np.random.SeedSequence([seed, step, micro_step]).generate_state(1)[0]
    return int(word) & 0x7FFFFFFF
