"""Choosing the next token from the model's logits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..targets import FabricError

Logits = npt.NDArray[np.float32]


class SamplingError(FabricError):
    """A sampling option has a value that cannot be."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is drawn.

    Parameters
    ----------
    temperature : float
        Divides the logits; 0 takes the likeliest token.
    top_k : int
        Draw among so many likeliest tokens; 0 for all.
    top_p : float
        Draw among the fewest likeliest tokens that hold this probability together (nucleus
        sampling, Holtzman et al. 2020); 1 for all.
    repetition_penalty : float
        Logits of tokens that occurred are divided by it where positive and multiplied where
        negative (CTRL, Keskar et al. 2019); 1 for none.
    seed : int
        Of everything drawn.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def validate(self) -> None:
        """Check every value.

        Raises
        ------
        SamplingError
            Naming the first that cannot be.
        """
        for name, holds, allowed in (
            ("temperature", 0 <= self.temperature < float("inf"), "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not holds:
                option = "--" + name.replace("_", "-")
                raise SamplingError(
                    f"{option} is {getattr(self, name)}, and must be {allowed}.",
                    f"Give {option} a value that is {allowed}.",
                )


class Sampler:
    """Draws tokens one after another; the same seed and logits give the same tokens.

    Parameters
    ----------
    options : SamplingOptions
    seen : iterable of int
        Tokens that count as having occurred, such as the prompt's.
    """

    def __init__(self, options: SamplingOptions, seen: Iterable[int] = ()) -> None:
        options.validate()
        self._options = options
        self._generator = np.random.default_rng(options.seed)
        self._seen = set(seen)

    def draw(self, logits: Logits) -> int:
        """Choose a token.

        Parameters
        ----------
        logits : numpy.ndarray
            float32 [vocab_size]; left as it is.

        Returns
        -------
        int
        """
        options = self._options
        if options.repetition_penalty != 1 and self._seen:
            logits = self._penalized(logits)
        if options.temperature == 0:
            token = int(np.argmax(logits))
        else:
            candidates, probabilities = nucleus(logits, options)
            # One uniform number a token, inverted by hand: numpy's `choice` copies and checks.
            point = self._generator.random() * probabilities.sum()
            index = int(np.searchsorted(np.cumsum(probabilities), point, side="right"))
            token = int(candidates[min(index, len(candidates) - 1)])
        self._seen.add(token)
        return token

    def _penalized(self, logits: Logits) -> Logits:
        penalty = np.float32(self._options.repetition_penalty)
        seen = np.fromiter(self._seen, np.int64, len(self._seen))
        logits = logits.copy()
        chosen = logits[seen]
        logits[seen] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
        return logits


def nucleus(
    logits: Logits, options: SamplingOptions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Give the tokens that may be drawn, likeliest first, and their weights.

    Parameters
    ----------
    logits : numpy.ndarray
        float32 [vocab_size].
    options : SamplingOptions
        With a temperature above 0.

    Returns
    -------
    tokens : numpy.ndarray
        int64 [n].
    weights : numpy.ndarray
        float64 [n], in the proportions of the probabilities.
    """
    vocabulary = len(logits)
    keep = min(options.top_k or vocabulary, vocabulary)
    if keep < vocabulary:
        tokens = np.argpartition(logits, vocabulary - keep)[vocabulary - keep :]
    else:
        tokens = np.arange(vocabulary)
    scores = logits[tokens].astype(np.float64) / options.temperature
    weights = np.exp(scores - scores.max())
    if options.top_p < 1 or keep < vocabulary:
        # Ties go to the smaller token, so that the order does not depend on the partition.
        order = np.lexsort((tokens, -weights))
        tokens, weights = tokens[order], weights[order]
    if options.top_p < 1:
        total = np.cumsum(weights)
        count = int(np.searchsorted(total, options.top_p * total[-1])) + 1
        tokens, weights = tokens[:count], weights[:count]
    return tokens, weights
