"""Heads in memory, as the attention kernels of graphics processors read them.

Elements along a head are read as vectors of `lanes`; memory is viewed as vectors of that width,
since only then may the device's compiler take an access for an aligned one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose_next
from ..tir import Buffer, Expr, bind, when
from .attention_vectors import vector_type
from .kernel import Gpu, ceil_div, loop, shared
from .vectors import held

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
    halves : bool
        Whether rows are float16 in memory; what is computed with them is float32.
    """

    heads: int
    kv_heads: int
    head_dim: int
    threads: int
    shared_bytes: int
    halves: bool = False

    @classmethod
    def of(cls, parameters: dict[str, Any], target: Target) -> Heads:
        """Return the shape that a kernel's parameters name, for a target."""
        gpu = Gpu(target)
        memory = target.limits.shared_bytes if gpu.shared and target.limits else 0
        return cls(
            heads=int(parameters["heads"]),
            kv_heads=int(parameters["kv_heads"]),
            head_dim=int(parameters["head_dim"]),
            threads=min(128, gpu.threads),
            shared_bytes=memory,
        )

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
    def row_dtype(self) -> str:
        """The type of a vector of a row in memory."""
        return self.dtype.replace("32", "16") if self.halves else self.dtype

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
        return (2 if self.halves else 4) * self.lanes * self.pitch


def first_fit(choices: Sequence[Choice], size: Callable[..., int], limit: int) -> Choice:
    """Return the recorded one of the choices whose bytes, ``size(*choice)``, are within a limit.

    By default that is the first, or the last choice where none is; no limit is 0.
    """
    fitting = [choice for choice in choices if not limit or size(*choice) <= limit]
    named = {tuple(map(int, choice)): choice for choice in fitting or choices[-1:]}
    return named[choose_next("block", list(named), next(iter(named)))]


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
    return turned(a, b, cosine, sine, back)


def turned(a: Expr, b: Expr, cosine: Expr, sine: Expr, back: bool = False) -> tuple[Expr, Expr]:
    """Return two vectors rotated by an angle, or `back` from it."""
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
        self.buffer = shared([count, heads.pitch], heads.row_dtype) if staged else None
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
                when(item < items, partial(self._write, row, v, low, high))

    def _write(self, row: Expr, v: Expr, low: Expr, high: Expr) -> None:
        T.buffer_store(self.buffer, low, [row, v])
        T.buffer_store(self.buffer, high, [row, self.heads.half + v])

    def __call__(self, row: Expr, v: Expr) -> Expr:
        """Return vector v of a row, as float32."""
        if self.buffer is not None:
            vector = self.buffer[row, v]
        else:
            assert self.source is not None
            vector = self.source.vector(self.token(row), v)
        return T.Cast(self.heads.dtype, vector) if self.heads.halves else vector
