"""What the attention kernels of graphics processors share: rows in memory, tiles in registers.

A work-group of attention holds a block of rows of one head (queries, say) and streams blocks of
others (keys) past it. Two products make up all of the work, each with a tile of registers for a
thread: :class:`Products`, the dot products of two blocks of rows along the head, and
:class:`Mixture`, sums of rows with such products as their weights. Between the two the products
pass through shared memory, because the threads take other shares of them.

Elements along a head are read as vectors of `lanes`; memory is viewed as vectors of that width,
since only then may the device's compiler take an access for an aligned one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, when
from .attention_vectors import extract, held, splat, total, vector_type, view, zero
from .kernel import Gpu, ceil_div, loop, registers, shared

MASKED = -1e30
"""Score of a key that a query does not see."""
LOG2_E = 1.4426950408889634
"""Scores are kept in units of log 2, as exp2 is the device's own exponential."""
Choice = TypeVar("Choice", bound=tuple)
Operand = Callable[[Expr, Expr], Expr]
"""``operand(row, v)`` is vector v of a row of a block."""


@dataclass(frozen=True)
class Heads:
    """The static shape of attention, and how a work-group of it is made.

    Attributes
    ----------
    heads, kv_heads, head_dim : int
        Hq, Hkv and D.
    threads : int
        Threads of a work-group, a power of two.
    shared_bytes : int
        Memory that blocks of rows may take in a work-group; 0 to read them where they lie.
    """

    heads: int
    kv_heads: int
    head_dim: int
    threads: int
    shared_bytes: int

    @classmethod
    def of(cls, parameters: dict[str, Any], target: Target) -> Heads:
        """Return the shape that a kernel's parameters name, for a target."""
        sizes = (int(parameters[name]) for name in ("heads", "kv_heads", "head_dim"))
        gpu = Gpu(target)
        memory = target.limits.shared_bytes if gpu.shared and target.limits else 0
        return cls(*sizes, threads=min(128, gpu.threads), shared_bytes=memory)

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def lanes(self) -> int:
        """Elements of a vector, which divide half a head."""
        return math.gcd(self.head_dim // 2, 4)

    @property
    def vectors(self) -> int:
        """Vectors of a head."""
        return self.head_dim // self.lanes

    @property
    def half(self) -> int:
        """Vectors of half a head: vector v is turned with vector ``half + v``."""
        return self.vectors // 2

    @property
    def dtype(self) -> str:
        """The type of a vector."""
        return vector_type(self.lanes)

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def pitch(self) -> int:
        """Vectors from row to row in shared memory: one more, so that rows begin in other banks."""
        return self.vectors + 1

    @property
    def row_bytes(self) -> int:
        """Bytes that a row of a head takes in shared memory."""
        return 4 * self.lanes * self.pitch


def first_fit(choices: Sequence[Choice], size: Callable[..., int], limit: int) -> Choice:
    """Return the first choice whose bytes, ``size(*choice)``, are within a limit.

    The last choice is returned where none is, and the first where there is no limit (0).
    """
    if not limit:
        return choices[0]
    return next((choice for choice in choices if size(*choice) <= limit), choices[-1])


def when_all(condition: Expr, body: Callable[[], None]) -> None:
    """Emit statements with barriers under a condition that a whole work-group shares.

    It becomes a loop of one turn or none: PoCL 3.1 computes wrongly where barriers are under two
    branches, and a device's compiler takes the loop for a branch anyway.
    """
    with loop(held(T.cast(condition, "int32"))):
        body()


class Columns:
    """The columns of one head in a matrix of vectors.

    Parameters
    ----------
    heads : Heads
        The shape.
    matrix : Buffer
        Viewed as vectors, a row for each token.
    column : PrimExpr
        The head's first vector in a row.
    row : callable
        The row of a token.
    """

    def __init__(
        self, heads: Heads, matrix: Buffer, column: Expr, row: Callable[[Expr], Expr]
    ) -> None:
        self.heads, self.matrix, self.column, self.row = heads, matrix, column, row

    def vector(self, token: Expr, v: Expr) -> Expr:
        """Return vector v of a token."""
        return self.matrix[self.row(token), self.column + v]

    def pair(self, token: Expr, v: Expr) -> tuple[Expr, Expr]:
        """Return vectors ``v`` and ``half + v`` of a token."""
        return bind(self.vector(token, v)), bind(self.vector(token, self.heads.half + v))


class RotatedColumns(Columns):
    """Columns that are rotated to the tokens' positions as they are read.

    Parameters
    ----------
    columns : Columns
        What to rotate.
    rope : Buffer
        The table, viewed as vectors.
    position : callable
        The position of a token.
    """

    def __init__(self, columns: Columns, rope: Buffer, position: Callable[[Expr], Expr]) -> None:
        super().__init__(columns.heads, columns.matrix, columns.column, columns.row)
        self.rope, self.position = rope, position

    def pair(self, token: Expr, v: Expr) -> tuple[Expr, Expr]:
        """Return vectors ``v`` and ``half + v`` of a token, rotated."""
        a, b = super().pair(token, v)
        return rotate(self.heads, self.rope, self.position(token), v, a, b)


def rotate(
    heads: Heads, rope: Buffer, position: Expr, v: Expr, a: Expr, b: Expr, back: bool = False
) -> tuple[Expr, Expr]:
    """Return vectors ``v`` and ``half + v`` rotated to a position, or `back` from it."""
    place = bind(position)
    cosine, sine = bind(rope[place, v]), bind(rope[place, heads.half + v])
    if back:
        return bind(a * cosine + b * sine), bind(b * cosine - a * sine)
    return bind(a * cosine - b * sine), bind(b * cosine + a * sine)


class Rows:
    """A block of rows of one head: staged in shared memory, or read where they lie.

    Parameters
    ----------
    heads : Heads
        The shape.
    thread : PrimExpr
        The thread's index.
    count : int
        Rows of the block.
    tokens : PrimExpr
        Tokens that exist; rows past them repeat the last one.
    staged : bool
        Whether to hold the rows in shared memory.
    """

    def __init__(
        self, heads: Heads, thread: Expr, count: int, tokens: Expr, staged: bool = True
    ) -> None:
        self.heads, self.thread, self.count, self.tokens = heads, thread, count, tokens
        self.buffer = shared([count, heads.pitch], heads.dtype) if staged else None
        self.source: Columns | None = None
        self.first: Expr = 0

    def token(self, row: Expr) -> Expr:
        """Return the token of a row."""
        return T.min(self.first + row, self.tokens - 1)

    def stage(self, source: Columns, first: Expr) -> None:
        """Emit the copy of the rows from token `first` on; a barrier must follow."""
        self.source, self.first = source, first
        if self.buffer is None:
            return
        heads, items = self.heads, self.count * self.heads.half
        places, pairs = [], []
        # All loads before all stores, so that they are under way together.
        for step in range(ceil_div(items, heads.threads)):
            item = bind(self.thread + step * heads.threads)
            last = items % heads.threads and step == items // heads.threads
            place = bind(T.min(item, items - 1)) if last else item
            row, v = bind(place // heads.half), bind(place % heads.half)
            places.append((row, v, item if last else None))
            pairs.append(source.pair(bind(self.token(row)), v))
        for (row, v, item), (low, high) in zip(places, pairs, strict=True):
            if item is None:
                self._write(row, v, low, high)
            else:
                when(item < items, lambda r=row, v=v, a=low, b=high: self._write(r, v, a, b))

    def _write(self, row: Expr, v: Expr, low: Expr, high: Expr) -> None:
        T.buffer_store(self.buffer, low, [row, v])
        T.buffer_store(self.buffer, high, [row, self.heads.half + v])

    def __call__(self, row: Expr, v: Expr) -> Expr:
        """Return vector v of a row."""
        if self.buffer is not None:
            return self.buffer[row, v]
        assert self.source is not None
        return self.source.vector(self.token(row), v)


class Products:
    """Dot products of ``m`` rows with ``n`` others: a tile of them in each thread's registers.

    A thread's tile is spread over the block in strides, and eight neighbouring threads take
    neighbouring rows, so that the threads that run together read other banks, or the same word.
    """

    def __init__(self, heads: Heads, thread: Expr, m: int, n: int) -> None:
        self.heads = heads
        self.across = self.threads_across(heads, n)
        self.down = heads.threads // self.across
        row, column = bind(thread % self.down), bind(thread // self.down)
        self.rows = [bind(row + i * self.down) for i in range(m // self.down)]
        self.columns = [bind(column + j * self.across) for j in range(n // self.across)]

    @staticmethod
    def threads_across(heads: Heads, n: int) -> int:
        """Return the threads that share a row of ``n`` products."""
        return min(heads.threads // 8, n)

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
                when(condition, lambda r=row, v=v, a=low, b=high: write(r, v, a, b))
