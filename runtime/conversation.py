"""A chat with memory: messages in, answers out, the cache kept from turn to turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .chat import Message
from .generate import Generation, GenerationOptions
from .protocols import Generates
from .tokenizer import Tokenizer


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


class Conversation:
    """A chat with the model.

    Parameters
    ----------
    engine : Generates
    tokenizer : Tokenizer
        With a chat template.
    options : GenerationOptions
    system : str or None
        A system message.

    Raises
    ------
    TokenizerError
        Where the model has no chat template.
    """

    def __init__(
        self,
        engine: Generates,
        tokenizer: Tokenizer,
        options: GenerationOptions,
        system: str | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._options = options
        self._end = tokenizer.end_of_turn()
        self._cached: list[int] = []
        self._turn = 0
        self.messages: list[Message] = []
        if system:
            self.messages.append({"role": "system", "content": system})

    def ask(self, text: str) -> Generation:
        """Say something; iterate over what comes back for the answer, then give it to `keep`.

        Only what the cache does not hold yet is read: usually the answer's end and the question,
        and always no more than what follows the first token that differs.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        rendered = self._tokenizer.chat.render(asked, answer_next=True)
        tokens = self._tokenizer.codec.encode(rendered)[0]
        held = self._cached[: self._engine.position]
        # One token at least is read, for the logits that follow it.
        shared = min(common_prefix(held, tokens), len(tokens) - 1)
        if shared < len(held):
            self._engine.rewind(shared)
            held = held[:shared]
        # Each turn draws with numbers of its own, or every answer would lean the same way.
        sampling = replace(self._options.sampling, seed=self._options.sampling.seed + self._turn)
        options = replace(self._options, sampling=sampling)
        generation = Generation(
            self._engine, self._tokenizer, tokens[len(held) :], options, self._end, held
        )
        self.messages = asked
        self._cached = tokens
        self._turn += 1
        return generation

    def keep(self, generation: Generation) -> str:
        """Remember a finished answer as the assistant's message; give its text."""
        answer = generation.result.text.strip()
        self.messages.append({"role": "assistant", "content": answer})
        self._cached = [*self._cached, *generation.tokens]
        return answer
