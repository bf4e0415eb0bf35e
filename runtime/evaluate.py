"""Loss and perplexity of a data file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .adapter import load_adapter
from .data import Corpus, CorpusOptions, Dataset, read_corpus
from .protocols import BundleLike, BundleT, Trains
from .tokenizer import load_tokenizer

_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a data file.

    Parameters
    ----------
    loss : float
        Mean cross-entropy of the labelled tokens, in nats.
    tokens : int
        Number of labelled tokens.
    """

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(min(self.loss, _LARGEST_EXPONENT))

    def to_json(self) -> dict[str, float]:
        """Give the keys of `fabric run --eval --json`."""
        return {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}


def evaluate(
    engine: Trains, dataset: Dataset, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Compute the mean loss of all rows, in their order.

    Parameters
    ----------
    engine : Trains
    dataset : Dataset
    progress : callable or None
        Called after each micro-batch with the number of rows done and their total.
    """
    total = 0.0
    done = 0
    rows = range(len(dataset))
    for batch in dataset.micro_batches(rows):
        total += engine.evaluate(batch)
        done = min(done + dataset.micro_batch, len(dataset))
        if progress is not None:
            progress(done, len(dataset))
    _, labelled = dataset.count(rows)
    return Evaluation(total / labelled, labelled)


def validation_set(corpus: Corpus, bundle: BundleLike, room: int | None = None) -> Dataset:
    """Lay documents into rows for evaluation.

    Always packed: masks keep documents apart, so the loss is that of each document alone, and
    fewer rows are faster.
    """
    return Dataset(corpus, bundle.context, bundle.micro_batch, packed=True, room=room)


def evaluate_file(
    bundle: BundleT,
    open_engine: Callable[[BundleT], Trains],
    path: Path,
    *,
    adapter: str = "",
    loss_on: str = "auto",
    truncate: bool = False,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a bundle, with an adapter or as it is, on a data file.

    Parameters
    ----------
    bundle : BundleLike
    open_engine : callable
        Makes the training engine; called after the data has been read, so that a fault in the
        data is told at once and reading it does not add to the engine's memory.
    path : Path
        JSONL or plain text.
    adapter : str
        An adapter's folder, with an optional ``:weight``; "" for the bare model.
    loss_on, truncate, skip_bad
        As in `CorpusOptions`.
    progress : callable or None
        As in `evaluate`.

    Raises
    ------
    DataError, ChatError, FileError
        Where the data cannot be read.
    AdapterError
        Where the adapter does not fit.
    """
    options = CorpusOptions(bundle.context, loss_on, truncate, skip_bad)
    weights = load_adapter(adapter, bundle).fitted(bundle) if adapter else None
    dataset = validation_set(read_corpus(path, load_tokenizer(bundle), options), bundle)
    engine = open_engine(bundle)
    engine.initialize_adapter(0)
    if weights is not None:
        engine.load_adapter_tensors(weights)
    return evaluate(engine, dataset, progress)
