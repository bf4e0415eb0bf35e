"""Rows as two 16-bit floats an element, and the running softmax of a subgroup's own rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .attention_heads import MASKED, Columns, Heads
from .attention_rows import LARGEST
from .fragments import (
    EIGHT,
    HalfRows,
    Lane,
    RowSums,
    clamped,
    exp2,
    half_vectors,
    quad_max,
    quad_sum,
)
from .kernel import ceil_div, registers
from .vectors import LANES, held, lane


class SplitRows(HalfRows):
    """Rows in shared memory, each element as two 16-bit floats: itself, and what that leaves of it.

    Make it at the top of a launch: it allocates.

    Parameters
    ----------
    place : Lane
        The thread's place.
    rows, vectors : int
        Its rows, and the vectors of eight elements of one, an even number.
    exact : bool
        Whether elements are 16-bit floats as they come, which leave nothing.
    """

    def __init__(self, place: Lane, rows: int, vectors: int, exact: bool = False) -> None:
        super().__init__(place, rows, vectors if exact else 2 * vectors)
        self.vectors, self.exact = vectors, exact

    @staticmethod
    def bytes(rows: int, vectors: int, exact: bool = False) -> int:
        """Return the memory of so many rows."""
        return rows * (vectors * (1 if exact else 2) + 1) * 16

    def put_parts(self, row: Expr, vector: Expr, high: Expr, rest: Expr) -> None:
        """Emit the store of eight elements."""
        self.put(row, vector, high)
        self.put(row, vector + self.vectors, rest)

    def turned_parts(self, row: Expr, vectors: Sequence[Expr]) -> tuple[list[Expr], list[Expr]]:
        """Return the right factors whose depth is 16 rows, the columns from each vector on.

        Returns
        -------
        tuple of list
            Those of the elements, and of what they leave: none where they are exact.
        """
        whole = [self.turned(row, vector) for vector in vectors]
        if self.exact:
            return whole, []
        return whole, [self.turned(row, vector + self.vectors) for vector in vectors]


class Split:
    """A block of rows of a head in shared memory, each element as two 16-bit floats.

    Parameters
    ----------
    heads : Heads
        The shape.
    place : Lane
        The thread's place.
    thread : PrimExpr
        The thread's index.
    threads, count : int
        Threads of the work-group, and rows.
    """

    def __init__(self, heads: Heads, place: Lane, thread: Expr, threads: int, count: int) -> None:
        self.heads, self.thread, self.threads, self.count = heads, thread, threads, count
        self.vectors = heads.head_dim // EIGHT
        self.rows = SplitRows(place, count, self.vectors)

    def stage(self, source: Columns, first: Expr, last: Expr, factor: float = 1.0) -> None:
        """Emit the copy of the rows from `first` on, of which those past `last` repeat it."""
        half = self.vectors // 2
        items = self.count * half
        loaded = []
        for step in range(ceil_div(items, self.threads)):
            item = bind(self.thread + step * self.threads)
            place = item if (step + 1) * self.threads <= items else bind(T.min(item, items - 1))
            row, vector = bind(place // half), bind(place % half)
            token = bind(T.min(first + row, last))
            pairs = [source.pair(token, vector * 2 + i) for i in range(2)]
            loaded.append((item, row, vector, pairs))
        for step, (item, row, vector, pairs) in enumerate(loaded):
            put = partial(self._put, row, vector, pairs, factor)
            put() if (step + 1) * self.threads <= items else when(item < items, put)

    def _put(self, row: Expr, vector: Expr, pairs: list[tuple[Expr, Expr]], factor: float) -> None:
        for part in range(2):
            # Other documents' may be no numbers, and their weights of zero would not hide that.
            values = [
                held(clamped(lane(pair[part], c) * T.float32(factor), LARGEST))
                for pair in pairs
                for c in range(LANES)
            ]
            place = vector + part * (self.vectors // 2)
            self.rows.put_parts(row, place, *half_vectors(values))


class Softmax:
    """The running softmax of a subgroup's 16 rows, of which each thread has two."""

    def __init__(self) -> None:
        self.top, self.sum = registers([2]), registers([2])
        for i in range(2):
            T.buffer_store(self.top, T.float32(MASKED), [i])
            T.buffer_store(self.sum, T.float32(0.0), [i])

    def update(self, scores: RowSums) -> list[Expr]:
        """Emit the exponentials of scores in units of log 2, in their place.

        Returns
        -------
        list of PrimExpr
            The factors on what was summed before.
        """
        tops = registers([2])
        for i in range(2):
            top = T.float32(MASKED)
            for j in range(scores.count):
                values = scores.get(j)
                top = T.max(top, T.max(values[2 * i], values[2 * i + 1]))
                top = held(top)
            T.buffer_store(tops, T.max(self.top[i], quad_max(top)), [i])
        factors = [held(exp2(self.top[i] - tops[i])) for i in range(2)]
        sums = registers([2])
        for i in range(2):
            T.buffer_store(sums, T.float32(0.0), [i])
        for j in range(scores.count):
            values = [held(exp2(v - tops[c // 2])) for c, v in enumerate(scores.get(j))]
            scores.put(j, values)
            for i in range(2):
                T.buffer_store(sums, sums[i] + (values[2 * i] + values[2 * i + 1]), [i])
        for i in range(2):
            T.buffer_store(self.sum, self.sum[i] * factors[i] + sums[i], [i])
            T.buffer_store(self.top, tops[i], [i])
        return factors

    def inverse(self) -> list[Expr]:
        """Return the reciprocals of the rows' sums of exponentials."""
        return [held(T.float32(1.0) / quad_sum(self.sum[i])) for i in range(2)]
