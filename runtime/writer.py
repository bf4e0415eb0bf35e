"""One text after another with one engine.

What a new text begins with like the last one is not read again, and a text that outgrows the cache
goes on without its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..targets.cache_room import CAPACITY
from .generate import Generation, GenerationError, GenerationOptions
from .protocols import BundleLike, Generates
from .tokenizer import Tokenizer

NEW_TOKENS = 256
"""Tokens of an answer at most, where nobody says."""


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


class Writer:
    """Writes texts.

    Parameters
    ----------
    engine : Generates
    tokenizer : Tokenizer
    options : GenerationOptions
    end : sequence of int or None
        Tokens that end a text; the tokenizer's by default.
    slide : bool
        Whether a text goes on when the cache is full: what it began with stays, and of the rest
        the newer half.
    """

    def __init__(
        self,
        engine: Generates,
        tokenizer: Tokenizer,
        options: GenerationOptions,
        end: Sequence[int] | None = None,
        slide: bool = False,
    ) -> None:
        self._engine, self._tokenizer, self._options = engine, tokenizer, options
        self._end, self.slide = end, slide
        self._last: Generation | None = None
        self._texts = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit into one text."""
        return self._engine.capacity

    def begin(self, tokens: Sequence[int], prefix: int | None = None) -> Generation:
        """Go on from tokens, of which only those that follow a common beginning are read.

        Parameters
        ----------
        tokens : sequence of int
            The prompt.
        prefix : int, optional
            How many of them stay when the text slides; all of them where it is not said.

        Raises
        ------
        GenerationError
            If they are none, or fill the cache.
        """
        held = self._last.cached[: self._engine.position] if self._last is not None else []
        # One token at least is read, for the logits that follow it.
        shared = max(min(common_prefix(held, tokens), len(tokens) - 1), 0)
        if shared < len(held):
            self._engine.rewind(shared)
        # Each text draws with numbers of its own, or all of them would lean the same way.
        sampling = self._options.sampling
        sampling = replace(sampling, seed=sampling.seed + self._texts)
        kept = len(tokens) if prefix is None else prefix
        self._last = Generation(
            self._engine,
            self._tokenizer,
            tokens[shared:],
            replace(self._options, sampling=sampling),
            self._end,
            tokens[:shared],
            kept if self.slide else None,
        )
        self._texts += 1
        return self._last


def check_room(
    bundle: BundleLike, capacity: int | None, prompt: int, new_tokens: int | None, slide: bool
) -> None:
    """Refuse a text that can't be as long as is asked, before anything is read.

    Parameters
    ----------
    bundle : BundleLike
        Whose model attends over ``max_context`` tokens at most.
    capacity : int or None
        Tokens that fit into the text, where somebody says.
    prompt : int
        Tokens that it begins with.
    new_tokens : int or None
        Tokens of the answer, where somebody says.
    slide : bool
        Whether the text may outgrow its capacity.

    Raises
    ------
    GenerationError
        If the prompt is too long, or leaves less room than is asked for.
    """
    limit = int(bundle.config["max_context"])
    room = min(limit, capacity or CAPACITY)
    wider = f", or allow up to {limit} with --capacity" if room < limit else ""
    whose = "this model attends over" if room == limit else "there is room for"
    if prompt >= room:
        raise GenerationError(
            f"The prompt has {prompt} tokens, and {whose} {room}, one of them new at least.",
            f"Shorten the prompt{wider}.",
        )
    if new_tokens is not None and not slide and prompt + new_tokens > room:
        raise GenerationError(
            f"The prompt has {prompt} tokens, and {new_tokens} new ones are asked for; "
            f"{whose} {room}.",
            f"Ask for --max-new-tokens {room - prompt}{wider}, or let the text slide: --slide",
        )
