"""Several independent works in one launch, each with work-groups of its own.

A launch costs as much as a small product, so what depends on nothing else runs beside the large
ones. Barriers stand outside of every branch, where all threads of a work-group must pass them:
the works take turns together, and between two barriers each group does its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, branch
from .kernel import barrier, launch, loop, registers, shared
from .operand import HALVES, VECTOR, zero_vector

THREADS = 64
"""Threads of a work-group of every work."""


@dataclass(frozen=True)
class Place:
    """Where statements of a work run.

    Attributes
    ----------
    group, thread : PrimExpr
        The work-group, counted from the work's first, and the thread in it.
    memory, halves : Buffer
        Shared memory, float32x4 and float16x4; None where no work of the launch needs any.
    sums : Buffer
        Registers, float32x4, that hold from one part of the work to the next; they begin as zeros.
    """

    group: Expr
    thread: Expr
    memory: Buffer
    halves: Buffer
    sums: Buffer


class Work:
    """A part of a launch: what it needs, and what it emits before, between and after barriers.

    Attributes
    ----------
    groups : PrimExpr or int
        Its work-groups.
    vectors, halves : int
        The shared memory of one, in float32x4 and in float16x4.
    sums : int
        The registers of a thread that hold, in float32x4.
    """

    groups: Expr
    vectors = 0
    halves = 0
    sums = 0

    def turns(self, group: Expr) -> Expr:
        """Return how many turns a work-group takes, at least one.

        A loop of no turns around a barrier is what some drivers get wrong.
        """
        return 1

    def start(self, place: Place) -> None:
        """Emit what comes before the first barrier."""

    def turn(self, place: Place, index: Expr) -> None:
        """Emit one turn, which a barrier follows."""

    def finish(self, place: Place) -> None:
        """Emit what comes after the last barrier."""


def launch_works(works: Sequence[Work]) -> None:
    """Emit one launch that does several works; the first one's groups start first."""
    sizes = max(w.vectors for w in works), max(w.halves for w in works)
    sums_size = max(w.sums for w in works)
    ends: list[Expr] = []
    for work in works:
        ends.append(work.groups + (ends[-1] if ends else 0))
    with launch([ends[-1]], [THREADS]) as (group, thread):
        memory, halves = (
            shared([size], dtype) if size else None
            for size, dtype in zip(sizes, (VECTOR, HALVES), strict=True)
        )
        sums = registers([sums_size], VECTOR) if sums_size else None
        for i in range(sums_size):
            T.buffer_store(sums, zero_vector(), [i])

        def each(emit: Callable[[Work, Place], None]) -> None:
            _choose(
                works, ends, group, lambda w, g: emit(w, Place(g, thread, memory, halves, sums))
            )

        if any(sizes):
            each(lambda work, place: work.start(place))
            barrier()
            with loop(_turns(works, ends, group)) as index:
                each(lambda work, place: work.turn(place, index))
                barrier()
        each(lambda work, place: work.finish(place))


def _choose(
    works: Sequence[Work], ends: list[Expr], group: Expr, emit: Callable[[Work, Expr], None]
) -> None:
    """Emit a branch to the work of a group, with the group counted from the work's first."""

    def rest(i: int) -> None:
        own = bind(group - ends[i - 1] if i else group)
        if i == len(works) - 1:
            emit(works[i], own)
        else:
            branch(group < ends[i], lambda: emit(works[i], own), lambda: rest(i + 1))

    rest(0)


def _turns(works: Sequence[Work], ends: list[Expr], group: Expr) -> Expr:
    """Return how many turns a group takes."""
    count = works[-1].turns(group - ends[-2] if len(works) > 1 else group)
    for i in reversed(range(len(works) - 1)):
        own = works[i].turns(group - ends[i - 1] if i else group)
        count = tirx.Select(group < ends[i], own, count)
    return count if isinstance(count, int) else bind(count)
