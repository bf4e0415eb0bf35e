"""The data of a training: its rows, their order, and what identifies them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .config import TrainingConfig
from .data import Corpus, CorpusOptions, Dataset, Order, read_corpus
from .evaluate import validation_set
from .files import sha256
from .protocols import BundleLike
from .tokenizer import load_tokenizer


@dataclass(frozen=True)
class TrainingData:
    """What a training learns from and is measured on.

    Parameters
    ----------
    train : Dataset
    evaluation : Dataset or None
    order : Order
        Which rows each step sees.
    files : dict of str to dict
        Name (without folders) and SHA-256 of the `train` and the `eval_data` file.
    notes : tuple of str
        What a person should know about how the files were read.
    """

    train: Dataset
    evaluation: Dataset | None
    order: Order
    files: dict[str, dict[str, str]]
    notes: tuple[str, ...]

    @property
    def identity(self) -> dict[str, str | None]:
        """Hashes of all that is learned from and measured on, by a person's names for it."""
        evaluation = self.evaluation.corpus.fingerprint() if self.evaluation else None
        return {
            "training data": self.train.corpus.fingerprint(),
            "validation data": evaluation,
        }


def load_training_data(bundle: BundleLike, config: TrainingConfig) -> TrainingData:
    """Read and encode the files of a training.

    Raises
    ------
    ConfigError
        Where the context is longer than the compiled one.
    DataError, ChatError, TokenizerError, FileError
        Where the data cannot be read.
    """
    room = config.row_length(bundle.context)
    options = CorpusOptions(room, config.loss_on, config.truncate, config.skip_bad)
    tokenizer = load_tokenizer(bundle)
    notes: list[str] = []

    def read(name: str) -> Corpus:
        corpus = read_corpus(Path(name), tokenizer, options)
        notes.extend(_notes(Path(name), corpus))
        return corpus

    train = Dataset(
        read(config.train), bundle.context, bundle.micro_batch, packed=config.pack, room=room
    )
    evaluation = validation_set(read(config.eval_data), bundle, room) if config.eval_data else None
    files = {
        role: {"file": Path(name).name, "sha256": sha256(Path(name))}
        for role, name in (("train", config.train), ("eval_data", config.eval_data))
        if name
    }
    order = Order(len(train), config.batch * config.accumulate, config.seed)
    return TrainingData(train, evaluation, order, files, tuple(notes))


def _notes(path: Path, corpus: Corpus) -> Iterator[str]:
    """Say how a file was read, as far as it is not what one expects."""
    yield f"{path.name}: {len(corpus)} documents, {int(corpus.positions.sum())} tokens."
    if corpus.skipped:
        yield f"{path.name}: {corpus.skipped} bad records were skipped; first, {corpus.first_bad}"
    if corpus.windowed:
        yield f"{path.name}: {corpus.windowed} texts are longer than the context and were split."
    if corpus.truncated:
        yield f"{path.name}: {corpus.truncated} records lost what is beyond the context."
