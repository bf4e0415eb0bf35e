"""What a ternary merge costs: perplexity and divergence, of the compiled models themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compiler import CompileOptions, compile_model
from ..models import Checkpoint
from ..runtime.batch import Batch
from ..runtime.bundle import open_bundle
from ..runtime.generate import load_adapters
from ..runtime.inference import InferenceEngine
from ..targets import get_target

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Quality:
    """How a model predicts a text.

    Attributes
    ----------
    loss : float
        Mean cross-entropy of the labels, in nats.
    divergence : float
        Mean Kullback-Leibler divergence of its next-token distribution from the first model's,
        KL(first || this), in nats.
    """

    loss: float
    divergence: float

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return float(np.exp(min(self.loss, 700.0)))


def measure(
    base: Checkpoint, merged: Checkpoint, adapters: Sequence[str], text: Batch
) -> dict[str, Quality]:
    """Compile both models and measure base with adapters, base without, and merged.

    Parameters
    ----------
    base, merged : Checkpoint
        Of one shape, so that they share their code.
    adapters : sequence of str
        As for generation: paths, each with an optional ``:weight``.
    text : Batch
        Rows of packed documents with at least one label.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = get_target("cpu")
        bundles = []
        for model, file in ((base, "base.fabric"), (merged, "merged.fabric")):
            path = compile_model(model, target, CompileOptions(), folder / file)
            bundles.append(open_bundle(path))
        length = text.tokens.shape[1]
        engines = {
            "model with adapters": InferenceEngine(
                bundles[0], load_adapters(adapters, bundles[0]), capacity=length
            ),
            "model without": InferenceEngine(bundles[0], capacity=length),
            "merged": InferenceEngine(bundles[1], capacity=length),
        }
        return _compare(engines, text)


def _compare(engines: Mapping[str, InferenceEngine], text: Batch) -> dict[str, Quality]:
    losses, divergences = dict.fromkeys(engines, 0.0), dict.fromkeys(engines, 0.0)
    count = 0
    for tokens, labels in documents(text):
        places = np.flatnonzero(labels >= 0)
        count += len(places)
        first: Floats | None = None
        for name, engine in engines.items():
            engine.reset()
            logs = _log_softmax(engine.score(tokens)[places])
            first = logs if first is None else first
            losses[name] -= float(logs[np.arange(len(places)), labels[places]].sum())
            divergences[name] += float((np.exp(first) * (first - logs)).sum())
    return {name: Quality(losses[name] / count, divergences[name] / count) for name in engines}


def documents(text: Batch) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
    """Yield tokens and labels of each document of the rows that has a label."""
    for tokens, labels, starts in zip(text.tokens, text.labels, text.starts, strict=True):
        cuts = [*np.unique(starts), len(tokens)]
        for begin, end in pairwise(cuts):
            if (labels[begin:end] >= 0).any():
                yield tokens[begin:end], labels[begin:end]


def _log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities, float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
