"""The numbers that a rule leaves open: tiles, unrolling, how work is cut for threads.

A rule asks for each where it needs it, with the values that are valid for its target::

    height, width = choose("tile", options=((6, 4), (8, 3)), default=(6, 4))

Without a record it gets the default; inside :func:`deciding`, what was given for that name, if that
is among the options. So a number from another shape or another version of a rule can be slow, but
never wrong. The space of a kernel is what its rule asks for: the tuner learns it by running the
rule, and needs no other description of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

Value = int | str | tuple[int, ...]
"""A number, a name, or the sizes of a tile."""
V = TypeVar("V", int, str, tuple[int, ...], tuple[int, int])
Supply = Callable[["Choice"], Value | None]
"""Returns a value for a choice, or None for its default."""


@dataclass(frozen=True)
class Choice:
    """One question of a rule.

    Attributes
    ----------
    name : str
        Unique within a kernel.
    options : tuple
        The valid values.
    default : Value
        One of them.
    """

    name: str
    options: tuple[Value, ...]
    default: Value


@dataclass
class Asked:
    """What a rule asked for, in that order, and what it was given.

    Attributes
    ----------
    choices : dict of str to Choice
        The questions.
    values : dict of str to Value
        The answers.
    """

    choices: dict[str, Choice] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)


_ACTIVE: ContextVar[tuple[Supply, Asked] | None] = ContextVar("decisions", default=None)


def choose(name: str, options: Sequence[V], default: V) -> V:
    """Return the value for a decision of the kernel that is being laid out.

    Parameters
    ----------
    name : str
        The decision; asked twice in a kernel, it is answered alike.
    options : sequence
        The values that are valid here.
    default : int, str or tuple of int
        What to take where nothing is recorded; one of the options.

    Raises
    ------
    ValueError
        If the default is no option, or the name stands for two different questions.
    """
    choice = Choice(name, tuple(options), default)
    if default not in choice.options:
        raise ValueError(f"the default {default} of {name} is none of its options")
    active = _ACTIVE.get()
    if active is None:
        return default
    supply, asked = active
    if name not in asked.choices:
        value = supply(choice)
        asked.choices[name] = choice
        asked.values[name] = value if value in choice.options else default  # type: ignore[assignment]
    elif asked.choices[name] != choice:
        raise ValueError(f"{name} names two different decisions of one kernel")
    return asked.values[name]  # type: ignore[return-value]


@contextmanager
def deciding(answers: Mapping[str, Value] | Supply) -> Iterator[Asked]:
    """Answer the decisions of the rules that run inside; gives what they ask for.

    Parameters
    ----------
    answers : mapping or callable
        Values by name, where absent the default; or a function of the choice.
    """

    def supply(choice: Choice) -> Value | None:
        return answers.get(choice.name) if isinstance(answers, Mapping) else answers(choice)

    asked = Asked()
    token = _ACTIVE.set((supply, asked))
    try:
        yield asked
    finally:
        _ACTIVE.reset(token)
