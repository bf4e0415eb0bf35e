"""Conversations to text by a model's Jinja chat template, and where the answers stand in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..targets import FabricError

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]


class ChatError(FabricError):
    """A conversation cannot be rendered by the template."""


class ChatTemplate:
    """A chat template, rendered as the common libraries render it, in Jinja's sandbox.

    Parameters
    ----------
    source : str
        The template.
    variables : mapping of str to str
        What it may write besides the messages: bos_token, eos_token.
    now : datetime or None
        What the template's `strftime_now` tells; None for the real time. Training sets it, so
        that a run resumed tomorrow reads the same data.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str] | None = None, now: datetime | None = None
    ) -> None:
        self.source = source
        self.variables = dict(variables or {})
        self.now = now

    def at(self, now: datetime) -> ChatTemplate:
        """Give the same template with its clock stopped."""
        return ChatTemplate(self.source, self.variables, now)

    @cached_property
    def _template(self) -> Template:
        """The compiled template; jinja2 is imported here, since most runs never chat."""
        import jinja2

        from .chat_environment import make_environment

        environment = make_environment()
        environment.globals["strftime_now"] = lambda form: (self.now or datetime.now()).strftime(
            form
        )
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise ChatError(
                f"The model's chat template is not valid Jinja: {error}.",
                "Correct chat_template.jinja and compile the model again.",
            ) from error

    def render(self, messages: Sequence[Message], *, answer_next: bool = False) -> str:
        """Render a conversation.

        Parameters
        ----------
        messages : sequence of mapping
            Each with `role` and `content`.
        answer_next : bool
            Whether to end with what makes the model answer (the "generation prompt").

        Returns
        -------
        str

        Raises
        ------
        ChatError
            Where the template refuses the conversation or fails on it.
        """
        import jinja2

        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=answer_next,
                tools=None,
                documents=None,
                **self.variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise ChatError(
                f"The model's chat template refuses the conversation: {error}.",
                "Check the order of the roles and that every message has `role` and `content`.",
            ) from error

    def mark_answers(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """Split the rendered conversation into what the assistant wrote and everything else.

        No tag is searched for: the template itself shows where an answer begins and ends. The
        conversation before an answer, rendered so that the model answers next, must be a prefix
        of the conversation with the answer, and that one of the whole; what lies between is the
        answer, with whatever the template writes to end it.

        Returns
        -------
        list of (str, bool)
            Pieces that make up the rendered conversation, True for the assistant's.

        Raises
        ------
        ChatError
            Where the template refuses the conversation or writes earlier turns differently when
            later ones follow (some drop the reasoning of earlier answers).
        """
        whole = self.render(messages)
        pieces: list[tuple[str, bool]] = []
        done = 0
        for index, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before = self.render(messages[:index], answer_next=True)
            after = self.render(messages[: index + 1])
            if not (whole.startswith(after) and after.startswith(before) and len(before) >= done):
                raise ChatError(
                    "The model's chat template writes the turns before an answer differently when "
                    f"the answer (message {index + 1}) follows, so its place cannot be found.",
                    "Train with --loss-on all, or use a template that only ever adds to the text.",
                )
            pieces += [(whole[done : len(before)], False), (whole[len(before) : len(after)], True)]
            done = len(after)
        return [piece for piece in [*pieces, (whole[done:], False)] if piece[0]]

    def after_answer(self) -> str:
        """Give what the template writes after an answer; empty where it cannot be told."""
        answer = "answer"
        question: Message = {"role": "user", "content": "question"}
        try:
            before = self.render([question], answer_next=True)
            after = self.render([question, {"role": "assistant", "content": answer}])
        except ChatError:
            return ""
        _, found, rest = after[len(before) :].partition(answer)
        return rest if found and after.startswith(before) else ""


def check_messages(messages: Any) -> list[Message]:
    """Check that `messages` is a conversation that can be trained on.

    Returns
    -------
    list of mapping
        The same messages.

    Raises
    ------
    ChatError
        Where it is no list of objects with a `role`, or the assistant says nothing in it.
    """
    remedy = 'Write a list such as [{"role": "user", "content": "…"}, {"role": "assistant", …}].'
    if not isinstance(messages, list) or not messages:
        raise ChatError("`messages` is no list of messages.", remedy)
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ChatError(f"Message {number} is no object with a `role`.", remedy)
        if not isinstance(message.get("content"), (str, list, type(None))):
            kind = json.dumps(message["content"])[:40]
            raise ChatError(f"Message {number} has {kind} as its content.", remedy)
    return messages
