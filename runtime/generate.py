"""Writing text, piece by piece as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..targets import FabricError
from .adapter import load_adapter
from .protocols import BundleLike, Generates, Tensors
from .sampling import Sampler, SamplingOptions
from .tokenizer import Tokenizer


class GenerationError(FabricError):
    """A text cannot be generated as asked."""


@dataclass(frozen=True)
class GenerationOptions:
    """How a text is written.

    Parameters
    ----------
    max_new_tokens : int
        Tokens at most.
    stop : tuple of str
        Texts before which to stop; they are not given themselves.
    sampling : SamplingOptions
        How each token is drawn.
    """

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


@dataclass(frozen=True)
class GenerationResult:
    """What was written, and how fast.

    Parameters
    ----------
    text : str
    tokens : int
        Tokens that were drawn, the one that ended the text included.
    tokens_per_s : float
        Over the tokens after the first.
    time_to_first_token_ms : float
        From the start, reading the prompt included.
    finished_by : str
        ``end`` (the model ended), ``stop`` (a stop text), ``length`` (enough tokens) or
        ``capacity`` (the cache is full).
    reused_tokens : int
        Tokens of the prompt that the cache held already.
    """

    text: str
    tokens: int
    tokens_per_s: float
    time_to_first_token_ms: float
    finished_by: str
    reused_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """Give the keys of `fabric run --prompt --json`."""
        return {
            "text": self.text,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens_per_s,
            "time_to_first_token_ms": self.time_to_first_token_ms,
            "finished_by": self.finished_by,
            "reused_tokens": self.reused_tokens,
        }


class StopFilter:
    """Holds text back for as long as it may be the beginning of a stop text.

    Parameters
    ----------
    stops : sequence of str
        None of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """Add text; give what is certainly before any stop text. Sets `hit` where one came."""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            given, self._held = self._held[: min(found)], ""
            return given
        cut = len(self._held) - self._possible_beginning()
        given, self._held = self._held[:cut], self._held[cut:]
        return given

    def flush(self) -> str:
        """Give what is still held back: it was no stop text after all."""
        given, self._held = self._held, ""
        return given

    def _possible_beginning(self) -> int:
        """Give the length of the longest end of the text that begins a stop text."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class Generation:
    """One text being written: iterate over it for the pieces, then ask for its `result`.

    Parameters
    ----------
    engine : Generates
        With whatever came before the prompt in its cache.
    tokenizer : Tokenizer
    prompt : sequence of int
        Tokens to append first; at least one.
    options : GenerationOptions
    end : sequence of int or None
        Tokens that end the text; the tokenizer's by default.
    before : sequence of int
        Tokens in the cache, which the repetition penalty also counts as having occurred.
    prefix : int or None
        With how many tokens the text goes on when the cache is full, besides the newer half of the
        rest; None to end there. Half of the cache at most.

    Attributes
    ----------
    tokens : list of int
        What was drawn.
    cached : list of int
        What the cache holds of the text, up to the engine's position.

    Raises
    ------
    GenerationError
        Where the prompt is empty or fills the cache.
    SamplingError
        Where a sampling option has a value that cannot be.
    """

    def __init__(
        self,
        engine: Generates,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        options: GenerationOptions,
        end: Sequence[int] | None = None,
        before: Sequence[int] = (),
        prefix: int | None = None,
    ) -> None:
        if not prompt:
            raise GenerationError("The prompt is empty.", "Give some text to go on from.")
        if options.max_new_tokens < 1:
            raise GenerationError(
                f"--max-new-tokens is {options.max_new_tokens}, and must be at least 1.",
                "Ask for at least one token.",
            )
        room = engine.capacity - engine.position
        if len(prompt) >= room:
            raise GenerationError(
                f"The prompt has {len(prompt)} tokens, and there is room for {room - 1}.",
                "Shorten it, or allow a longer conversation with --capacity.",
            )
        self._engine = engine
        self._prompt = list(prompt)
        self._options = options
        self._end = frozenset(tokenizer.end if end is None else end)
        self._decoder = tokenizer.stream()
        self._filter = StopFilter(options.stop)
        self._sampler = Sampler(options.sampling, [*before, *self._prompt])
        self.tokens: list[int] = []
        self.cached = [*before, *self._prompt]
        self._reused, self._prefix = len(before), prefix
        self._pieces: list[str] = []
        self._finished_by = "length"
        self._began = self._first = self._last = 0.0

    def __iter__(self) -> Iterator[str]:
        """Give the text as it is written; a piece is never half a character and never empty."""
        self._began = time.perf_counter()
        logits = self._engine.prefill(self._prompt)
        while True:
            token = self._sampler.draw(logits)
            self.tokens.append(token)
            self._last = time.perf_counter()
            self._first = self._first or self._last
            if token in self._end:
                self._finished_by = "end"
                break
            yield from self._give(self._filter.push(self._decoder.push(token)))
            if self._filter.hit:
                self._finished_by = "stop"
                return
            if len(self.tokens) == self._options.max_new_tokens:
                break
            self.cached.append(token)
            if self._engine.position < self._engine.capacity:
                logits = self._engine.decode(token)
            elif self._prefix is None:
                self._finished_by = "capacity"
                break
            else:
                logits = self._slide(self._prefix)
        yield from self._give(self._filter.push(self._decoder.flush()) + self._filter.flush())

    def _slide(self, prefix: int) -> np.ndarray:
        """Forget the middle of the text; the logits after what stays.

        What stays is read again behind the prefix, so it is as if the text had never been longer.
        """
        capacity = self._engine.capacity
        kept = min(prefix, capacity // 2)
        self.cached[kept:] = self.cached[-max((capacity - kept) // 2, 1) :]
        self._engine.rewind(kept)
        return self._engine.prefill(self.cached[kept:])

    def _give(self, piece: str) -> Iterator[str]:
        if piece:
            self._pieces.append(piece)
            yield piece

    @property
    def result(self) -> GenerationResult:
        """What was written; complete once the iteration has ended."""
        count = len(self.tokens)
        seconds = self._last - (self._first if count > 1 else self._began)
        return GenerationResult(
            text="".join(self._pieces),
            tokens=count,
            tokens_per_s=max(1, count - 1) / max(seconds, 1e-9),
            time_to_first_token_ms=1000 * (self._first - self._began),
            finished_by=self._finished_by,
            reused_tokens=self._reused,
        )


def load_adapters(names: Sequence[str], bundle: BundleLike) -> list[tuple[Tensors, float]]:
    """Read adapters for an inference engine, which adds them all up.

    Parameters
    ----------
    names : sequence of str
        Folders, each with an optional ``:weight``.
    bundle : BundleLike

    Returns
    -------
    list of (dict of str to numpy.ndarray, float)
        Tensors and full multiplier: the adapter's own scale times its weight.

    Raises
    ------
    AdapterError, FileError
        Where one cannot be read or does not fit the bundle.
    """
    adapters = [load_adapter(name, bundle) for name in names]
    return [(adapter.tensors, adapter.scale) for adapter in adapters]
