"""Several sums, or maxima, of a work-group at once, in a fixed order.

:func:`reduction` takes a way that suits the target: through memory that the work-group shares
alone, or first within the subgroups, whose threads exchange registers.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .kernel import Gpu, barrier, loop, registers, shared
from .vectors import held

PARTS = 16
"""Partial results of a value that every thread combines for itself."""
SEVERAL = 4
"""Values up to which a subgroup is the quicker way: it takes them one by one, each in five steps,
where fast shared memory combines all at once."""
LEAST_SUBGROUP = 4
"""Threads of the smallest subgroup that a device forms of a larger work-group."""
Combine = Callable[[Expr, Expr], Expr]


def add(left: Expr, right: Expr) -> Expr:
    """Return the sum."""
    return left + right


def reduction(
    gpu: Gpu,
    threads: int,
    thread: Expr,
    count: int = 1,
    dtype: str = "float32",
    combine: Combine = add,
) -> Reduction:
    """Return what combines values of every thread over the work-group.

    Open it at the top of a launch, where memory may be shared; its ``put`` may then be emitted any
    number of times, in loops that all threads run equally often.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    threads : int
        Threads of the work-group, a power of two.
    thread : PrimExpr
        The thread's index.
    count : int
        Values combined at once, a power of two up to `threads`.
    dtype : str
        Of the values: float32 or int32.
    combine : callable
        `add` or ``tirx.max``; any that is associative but for rounding without subgroups.
    """
    if gpu.subgroups and (count <= SEVERAL or not gpu.shared):
        return SubgroupReduction(threads, thread, count, dtype, combine)
    return Reduction(threads, thread, count, dtype, combine)


class Reduction:
    """The combination through shared memory alone, see :func:`reduction`."""

    def __init__(
        self,
        threads: int,
        thread: Expr,
        count: int = 1,
        dtype: str = "float32",
        combine: Combine = add,
    ) -> None:
        self.threads, self.thread, self.count, self.combine = threads, thread, count, combine
        self._allocate(dtype)

    def _allocate(self, dtype: str) -> None:
        self.parts = min(PARTS, self.threads // self.count)
        # Rows are longer than what they hold, so that neighbours read from different banks.
        self.pitch = self.threads + self.parts
        self.values = shared([self.count * self.pitch], dtype)
        self.partial = shared([self.count * self.parts], dtype)

    def put(self, values: list[Expr]) -> None:
        """Emit the combination of `count` values of each thread."""
        for i, value in enumerate(values):
            T.buffer_store(self.values, value, [i * self.pitch + self.thread])
        barrier()
        active = self.count * self.parts
        if active < self.threads:
            when(self.thread < active, self._combine)
        else:
            self._combine()
        barrier()

    def _combine(self) -> None:
        place = bind(self.thread // self.parts * self.pitch + self.thread % self.parts)
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


class SubgroupReduction(Reduction):
    """The combination within each subgroup and then, in their order, of the subgroups' results.

    These take turns in two halves of the shared memory, so that one barrier is enough: who is past
    the next one has read what the one after that overwrites.
    """

    def _allocate(self, dtype: str) -> None:
        self.dtype = dtype
        self.function = "fabric_subgroup_" + ("max" if self.combine is tirx.max else "add")
        self.parts = max(self.threads // LEAST_SUBGROUP, 1)
        self.partial = shared([2 * self.count * self.parts], dtype)
        self.turn = registers([1], "int32")
        T.buffer_store(self.turn, 0, [0])
        # Held, since what reads no memory may be moved to where not all threads come by.
        self.subgroup, self.lane, self.subgroups = (
            held(T.call_pure_extern("int32", f"fabric_subgroup_{name}"))
            for name in ("id", "lane", "count")
        )

    def put(self, values: list[Expr]) -> None:
        """Emit the combination of `count` values of each thread."""
        T.buffer_store(self.turn, 1 - self.turn[0], [0])
        totals = [held(T.call_pure_extern(self.dtype, self.function, v)) for v in values]

        def leave() -> None:
            for i, total in enumerate(totals):
                T.buffer_store(self.partial, total, [self._place(i) + self.subgroup])

        when(self.lane == 0, leave)
        barrier()

    def _place(self, index: Expr) -> Expr:
        return (self.turn[0] * self.count + index) * self.parts

    def get(self, index: Expr = 0) -> Expr:
        """Return a combined value, in any thread and until the next :meth:`put`."""
        first = bind(self._place(index))
        total = registers([1], self.dtype)
        T.buffer_store(total, self.partial[first], [0])
        with loop(self.subgroups, 1) as i:
            T.buffer_store(total, self.combine(total[0], self.partial[first + i]), [0])
        return total[0]
