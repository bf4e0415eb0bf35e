"""The text that `fabric merge` measures on, as rows of tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from ..models import Checkpoint
from ..runtime.batch import Batch
from ..runtime.data import CorpusOptions, Dataset, read_corpus
from ..runtime.tokenizer import Tokenizer, load_tokenizer

_OWN = "biomedqa/validation.jsonl"


@dataclass(frozen=True)
class _Model:
    """What the tokenizer asks of a bundle, for a model that was not compiled."""

    config: dict[str, Any]
    tokenizer_path: Path | None
    path: Path
    context: int = 0
    micro_batch: int = 1
    lora: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)


def measuring_rows(
    model: Checkpoint, data: Path | None, context: int, most: int, seed: int
) -> tuple[Batch, str]:
    """Give rows of at most `most` tokens in all, and words for where they come from.

    Parameters
    ----------
    model : Checkpoint
    data : Path or None
        JSONL or plain text; None for the questions that come with fabric, or for random tokens
        where the model has no tokenizer.
    context : int
        Tokens of a row.
    most : int
        At least one row is given, whatever its length.
    seed : int
        Of the random tokens.

    Raises
    ------
    DataError, TokenizerError, FileError
        Where the data cannot be read.
    """
    if data is None and not model.tokenizer_files:
        return _random_rows(model, context, most, seed), "random tokens"
    with _tokenizer(model) as tokenizer:
        if data is not None:
            return _read(data, tokenizer, context, most), data.name
        with as_file(files("bitfabric.examples") / _OWN) as path:
            return _read(path, tokenizer, context, most), "fabric's own biomedical questions"


def _read(path: Path, tokenizer: Tokenizer, context: int, most: int) -> Batch:
    """Lay a file's documents into rows; a long record loses its end, as it only measures."""
    corpus = read_corpus(path, tokenizer, CorpusOptions(context, truncate=True))
    dataset = Dataset(corpus, context, 1, packed=True)
    batches: list[Batch] = []
    total = 0
    for index in range(len(dataset)):
        tokens, _ = dataset.count([index])
        if batches and total + tokens > most:
            break
        total += tokens
        batches += list(dataset.micro_batches([index]))
    return Batch(
        *(
            np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("tokens", "labels", "starts")
        )
    )


def _random_rows(model: Checkpoint, context: int, most: int, seed: int) -> Batch:
    count = max(1, most // context)
    shape = count, context + 1
    drawn = np.random.default_rng(seed).integers(model.config.vocab_size, size=shape)
    tokens = drawn.astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], np.zeros((count, context), np.int32))


@contextmanager
def _tokenizer(model: Checkpoint) -> Iterator[Tokenizer]:
    """Open a model's tokenizer, which reads its files from a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in model.tokenizer_files.items():
            (folder / file).write_bytes(content)
        path = folder / "tokenizer.json"
        found = path if path.is_file() else None
        yield load_tokenizer(_Model(model.config.to_dict(), found, folder))
