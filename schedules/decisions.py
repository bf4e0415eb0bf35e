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
R = TypeVar("R")
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
        The valid values; none where a rule can't list them, see :func:`given`.
    default : Value
        One of them; empty where there are none.
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


def choose_next(name: str, options: Sequence[V], default: V) -> V:
    """Return the value for a decision that a kernel makes several times, each for itself.

    The first is called `name`, those after it ``name 2`` and so on. The default may be missing
    among the options.
    """
    active = _ACTIVE.get()
    if active is None:
        return default
    before = sum(asked.partition(" ")[0] == name for asked in active[1].choices)
    valid: list[V] = list(options)
    if default not in valid:
        valid.append(default)
    return choose(f"{name} {before + 1}" if before else name, valid, default)


def given(name: str, accept: Callable[[Value], R | None]) -> R | None:
    """Return what a rule makes of a recorded decision whose values can't be listed.

    Parameters
    ----------
    name : str
        The decision.
    accept : callable
        Returns what it makes of a value, or None where that is not valid here.

    Returns
    -------
    Any
        None where nothing is recorded, or it was not accepted.
    """
    active = _ACTIVE.get()
    if active is None:
        return None
    supply, asked = active
    asked.choices[name] = choice = Choice(name, (), "")
    value = supply(choice)
    made = None if value is None else accept(value)
    if made is not None:
        asked.values[name] = value  # type: ignore[assignment]
    return made


@contextmanager
def deciding(answers: Mapping[str, Value] | Supply) -> Iterator[Asked]:
    """Answer the decisions of the rules that run inside; gives what they ask for.

    Parameters
    ----------
    answers : mapping or callable
        Values by name, where absent the default; or a function of a choice that has options.
    """

    def supply(choice: Choice) -> Value | None:
        if isinstance(answers, Mapping):
            return answers.get(choice.name)
        return answers(choice) if choice.options else None

    asked = Asked()
    token = _ACTIVE.set((supply, asked))
    try:
        yield asked
    finally:
        _ACTIVE.reset(token)
