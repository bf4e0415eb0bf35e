"""Tiles of attention in registers: products along heads, and sums of rows that they weigh.

A work-group of attention holds a block of rows of one head (queries, say) and streams blocks of
others (keys) past it. Two products make up all of the work, each with a tile of registers for a
thread: :class:`Products`, the dot products of two blocks of rows along the head, and
:class:`Mixture`, sums of rows with such products as their weights. Between the two the products
pass through shared memory, because the threads take other shares of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .attention_heads import Heads, Operand
from .attention_vectors import extract, splat, total, vector_type, view, zero
from .kernel import ceil_div, loop, registers, shared


class Products:
    """Dot products of ``m`` rows with ``n`` others: a tile of them in each thread's registers.

    A thread's tile is spread over the block in strides, and eight neighbouring threads take
    neighbouring rows, so that the threads that run together read other banks, or the same word.
    """

    def __init__(self, heads: Heads, thread: Expr, m: int, n: int) -> None:
        self.heads = heads
        self.across = self.threads_across(heads, m, n)
        self.down = heads.threads // self.across
        row, column = bind(thread % self.down), bind(thread // self.down)
        self.rows = [bind(row + i * self.down) for i in range(m // self.down)]
        self.columns = [bind(column + j * self.across) for j in range(n // self.across)]

    @staticmethod
    def threads_across(heads: Heads, m: int, n: int) -> int:
        """Return the threads that share a row of ``n`` products, for tiles that are not too high:
        the nearer to a square, the less a thread reads for a product."""
        across = min(heads.threads // 8, n)
        while m * across // heads.threads > 2 * (n // across):
            across //= 2
        return across

    def __call__(self, left: Operand, right: Operand) -> list[list[Expr]]:
        """Emit the products of this thread's rows and columns and return them."""
        width, lanes = len(self.columns), self.heads.lanes
        sums = registers([len(self.rows) * width], self.heads.dtype)
        for k in range(len(self.rows) * width):
            T.buffer_store(sums, zero(lanes), [k])
        with loop(self.heads.vectors) as v:
            lefts = [bind(left(i, v)) for i in self.rows]
            rights = [bind(right(j, v)) for j in self.columns]
            for i, a in enumerate(lefts):
                for j, b in enumerate(rights):
                    k = i * width + j
                    T.buffer_store(sums, sums[k] + a * b, [k])
        return [
            [bind(total(bind(sums[i * width + j]), lanes)) for j in range(width)]
            for i in range(len(self.rows))
        ]


class Weights:
    """The ``(m, n)`` weights that pass from :class:`Products` to :class:`Mixture`."""

    def __init__(self, m: int, n: int) -> None:
        self.rows, self.n, self.pitch = m, n, n // 4 + 1
        self.vectors = shared([m, self.pitch], vector_type(4))
        self.scalars = view(self.vectors, [m, 4 * self.pitch], "float32")

    @staticmethod
    def bytes(m: int, n: int) -> int:
        """Return the memory that they take."""
        return 4 * m * (n + 4)

    def store(self, value: Expr, row: Expr, column: Expr) -> None:
        """Emit the store of one of them."""
        T.buffer_store(self.scalars, value, [row, column])

    def vector(self, row: Expr, k: Expr) -> Expr:
        """Return weights 4 k to 4 k + 3 of a row."""
        return self.vectors[row, k]


class Mixture:
    """Sums over ``m`` rows of a head, held in registers: ``sum_j weights[i, j] operand(j)``.

    A thread has pairs of vectors v and ``half + v``, so that it can rotate what it has summed.
    """

    def __init__(self, heads: Heads, thread: Expr, m: int) -> None:
        self.heads = heads
        across = self._across(m)
        groups = heads.threads // across
        column, group = bind(thread % across), bind(thread // across)
        self.rows = [bind(group + i * groups) for i in range(m // groups)]
        self.columns = [bind(column + u * across) for u in range(ceil_div(heads.half, across))]
        self.spare = len(self.columns) * across > heads.half
        self.width = 2 * len(self.columns)
        self.sums = registers([len(self.rows) * self.width], heads.dtype)
        for k in range(len(self.rows) * self.width):
            T.buffer_store(self.sums, zero(heads.lanes), [k])

    def _across(self, m: int) -> int:
        """Return the threads of a row: the number that leaves the fewest idle."""
        least = max(1, self.heads.threads // m)
        choices = [n for n in (1, 2, 4, 8, 16, 32) if least <= n <= self.heads.threads]
        return min(choices, key=lambda n: (ceil_div(self.heads.half, n) * n, abs(n - 8)))

    def _vectors(self) -> list[Expr]:
        """Return the places of this thread's vectors in a head; spare ones repeat the last."""
        half = self.heads.half
        low = [bind(T.min(v, half - 1)) if self.spare else v for v in self.columns]
        return [*low, *[bind(v + half) for v in low]]

    def scale(self, factor: Callable[[Expr], Expr]) -> None:
        """Emit the multiplication of each row by ``factor(row)``."""
        for i, row in enumerate(self.rows):
            value = splat(bind(factor(row)), self.heads.lanes)
            for u in range(self.width):
                k = i * self.width + u
                T.buffer_store(self.sums, self.sums[k] * value, [k])

    def add(self, weights: Weights, operand: Operand) -> None:
        """Emit the sum over all rows of a block."""
        places = self._vectors()
        with loop(weights.n // 4) as step:
            factors = [bind(weights.vector(row, step)) for row in self.rows]
            for j in range(4):
                values = [bind(operand(4 * step + j, v)) for v in places]
                for i, factor in enumerate(factors):
                    weight = splat(extract(factor, j, 4), self.heads.lanes)
                    for u, value in enumerate(values):
                        k = i * self.width + u
                        T.buffer_store(self.sums, self.sums[k] + weight * value, [k])

    def store(self, exists: Callable[[Expr], Expr], write: Callable[..., None]) -> None:
        """Emit ``write(row, v, low, high)`` of each pair of vectors, for rows that exist."""
        pairs = len(self.columns)
        for i, row in enumerate(self.rows):
            for u, v in enumerate(self.columns):
                low, high = (bind(self.sums[i * self.width + u + p]) for p in (0, pairs))
                condition = exists(row)
                if self.spare:
                    condition = T.And(condition, v < self.heads.half)
                when(condition, partial(write, row, v, low, high))
