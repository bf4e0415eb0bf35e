"""Several sums, or maxima, of a work-group at once, behind two barriers."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .kernel import barrier, shared

PARTS = 16
"""Partial results of a value that every thread combines for itself."""


class Reduction:
    """Values of every thread, combined over the work-group in a fixed order.

    Open it at the top of a launch, where memory may be shared; :meth:`put` may then be emitted any
    number of times, in loops that all threads run equally often.

    Parameters
    ----------
    threads : int
        Threads of the work-group, a power of two.
    thread : PrimExpr
        The thread's index.
    count : int
        Values combined at once, a power of two up to `threads`.
    dtype : str
        Of the values.
    combine : callable
        The operation, associative but for rounding.
    """

    def __init__(
        self,
        threads: int,
        thread: Expr,
        count: int = 1,
        dtype: str = "float32",
        combine: Callable[[Expr, Expr], Expr] = lambda a, b: a + b,
    ) -> None:
        self.threads, self.thread, self.count, self.combine = threads, thread, count, combine
        self.parts = min(PARTS, threads // count)
        self.values = shared([count * threads], dtype)
        self.partial = shared([count * self.parts], dtype)

    def put(self, values: list[Expr]) -> None:
        """Emit the combination of `count` values of each thread."""
        for i, value in enumerate(values):
            T.buffer_store(self.values, value, [i * self.threads + self.thread])
        barrier()
        active = self.count * self.parts
        if active < self.threads:
            when(self.thread < active, self._combine)
        else:
            self._combine()
        barrier()

    def _combine(self) -> None:
        place = bind(self.thread // self.parts * self.threads + self.thread % self.parts)
        total = self.values[place]
        for i in range(1, self.threads // self.parts):
            total = self.combine(total, self.values[place + i * self.parts])
        T.buffer_store(self.partial, total, [self.thread])

    def get(self, index: Expr = 0) -> Expr:
        """Return a combined value, in any thread and until the next :meth:`put`."""
        total = self.partial[index * self.parts]
        for i in range(1, self.parts):
            total = self.combine(total, self.partial[index * self.parts + i])
        return bind(total)
