"""A chat with memory: messages in, answers out, the cache kept from turn to turn."""

from __future__ import annotations

from collections.abc import Sequence

from .chat import Message
from .generate import Generation, GenerationOptions
from .protocols import Generates
from .tokenizer import Tokenizer
from .writer import Writer, common_prefix


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
    slide : bool
        Whether the oldest messages are forgotten when the cache is full; the system message and
        what the template says before it stay.

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
        slide: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._writer = Writer(engine, tokenizer, options, tokenizer.end_of_turn(), slide)
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._forgotten = 0
        self.messages = [*self._system]
        self._prefix = 0
        if slide:
            texts = (self._encode([*self._system, _said(word)]) for word in ("a", "b"))
            self._prefix = common_prefix(*texts)

    def ask(self, text: str) -> Generation:
        """Say something; iterate over what comes back for the answer, then give it to `keep`.

        Only what the cache does not hold yet is read: usually the answer's end and the question,
        and always no more than what follows the first token that differs.
        """
        asked = [*self.messages, _said(text)]
        tokens = self._encode(self._remembered(asked))
        # A quarter of the cache is for the answer.
        while self._writer.slide and 4 * len(tokens) > 3 * self._writer.capacity:
            if len(self._remembered(asked)) <= len(self._system) + 2:
                break
            self._forgotten += 2
            tokens = self._encode(self._remembered(asked))
        generation = self._writer.begin(tokens, self._prefix)
        self.messages = asked
        return generation

    def keep(self, generation: Generation) -> str:
        """Remember a finished answer as the assistant's message; give its text."""
        answer = generation.result.text.strip()
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def _remembered(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages without the forgotten ones."""
        return [*self._system, *messages[len(self._system) + self._forgotten :]]

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        rendered = self._tokenizer.chat.render(messages, answer_next=True)
        return self._tokenizer.codec.encode(rendered)[0]


def _said(text: str) -> Message:
    return {"role": "user", "content": text}


__all__ = ["Conversation", "common_prefix"]
