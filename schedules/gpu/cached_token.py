"""Attention of one token to the cache, by a whole work-group.

A chunk of positions at a time, the threads first share the products of the query and the keys: four
positions each, whose keys lie side by side, and a slice of the head. Then they share the values: a
vector of the head each, and a strip of the positions. Each strip keeps a softmax of its own; the
strips meet only at the end, in their order.

The cache past the token's position is memory that nothing was written to. Reads stay at or before
the vector that holds the position; scores past it are replaced, values past it are not read.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, when
from .attention_heads import LOG2_E, MASKED, Heads, rotate
from .attention_vectors import extract, splat, vector_type, view, zero
from .kernel import barrier, ceil_div, loop, registers, shared
from .vectors import LANES, held, power_of_two

SLICE = 16
"""Elements of a head that a thread multiplies, all of whose keys it loads at once."""


class Cache:
    """The arguments of attention over a cache, viewed as vectors.

    Attributes
    ----------
    qkv, rope, out : Buffer
        A row for a token or position, vectors along it.
    sequence, position : Buffer
        Of each token.
    keys : Buffer
        ``(S, Hkv, D, M / 4)``, vectors of four positions.
    values : Buffer
        ``(S Hkv M, D / lanes)``.
    """

    def __init__(self, heads: Heads, arguments: tuple[Buffer, ...]) -> None:
        qkv, self.sequence, self.position, rope, keys, values, out = arguments
        lanes, dtype = heads.lanes, heads.dtype
        self.tokens, self.capacity = qkv.shape[0], values.shape[2]
        self.qkv, self.rope, self.out = (
            view(x, [x.shape[0], x.shape[1] // lanes], dtype) for x in (qkv, rope, out)
        )
        sequences, kv_heads, head_dim, capacity = keys.shape
        self.keys = view(
            keys, [sequences, kv_heads, head_dim, capacity // LANES], vector_type(LANES)
        )
        rows = sequences * kv_heads * capacity
        self.values = view(values, [rows, heads.vectors], dtype)
        self.kv_heads = kv_heads

    def first_value(self, s: Expr, kv: Expr) -> Expr:
        """Return the row of position 0 of a head among the values."""
        return (s * self.kv_heads + kv) * self.capacity


class Token:
    """The work-group of one token and query head. Make it at the top of a launch: it allocates."""

    def __init__(self, heads: Heads, cache: Cache, thread: Expr) -> None:
        self.heads, self.cache, self.thread = heads, cache, thread
        self.slices, self.groups, self.across, self.strips = _shares(heads)
        self.steps = ceil_div(heads.head_dim, self.slices)
        self.query = shared([_padded(heads) // heads.lanes], heads.dtype)
        self.scalars = view(self.query, [_padded(heads)], "float32")
        self.products = shared([heads.threads], vector_type(LANES))
        self.mixtures = shared([heads.threads], heads.dtype)
        self.tops, self.sums = shared([self.strips]), shared([self.strips])
        self.mixture = registers([1], heads.dtype)
        self.top, self.sum = registers([1]), registers([1])

    @staticmethod
    def bytes(heads: Heads) -> int:
        """Return the shared memory that it takes."""
        vectors = heads.threads * 4 * (LANES + heads.lanes)
        return vectors + 4 * _padded(heads) + 8 * _shares(heads)[3]

    def attend(self, t: Expr, h: Expr, wanted: Expr = True) -> None:
        """Emit the attention of head h of token t, where it is wanted."""
        heads, cache = self.heads, self.cache
        s, self.last = bind(cache.sequence[t]), bind(cache.position[t])
        self.s, self.kv = s, bind(h // heads.group)
        self.column = bind(self.thread % self.across)
        self.strip = bind(self.thread // self.across)
        self._rotate_query(t, h)
        T.buffer_store(self.mixture, zero(heads.lanes), [0])
        T.buffer_store(self.top, T.float32(MASKED), [0])
        T.buffer_store(self.sum, T.float32(0.0), [0])
        barrier()
        chunk = self.groups * LANES
        turns, writers = self.last // chunk + 1, heads.vectors
        if wanted is not True:
            turns, writers = (
                held(T.if_then_else(wanted, turns, 1)),
                held(T.if_then_else(wanted, writers, 0)),
            )
        with loop(turns) as index:
            self._chunk(bind(index * self.groups))
        self._finish(t, h, writers)

    def _rotate_query(self, t: Expr, h: Expr) -> None:
        """Emit the rotated and scaled query, and zeros up to whole slices."""
        heads, cache = self.heads, self.cache
        factor = splat(T.float32(heads.scale * LOG2_E), heads.lanes)

        def pair() -> None:
            v = self.thread
            first = bind(h * heads.vectors + v)
            a, b = bind(cache.qkv[t, first]), bind(cache.qkv[t, first + heads.half])
            low, high = rotate(heads, cache.rope, self.last, v, a, b)
            T.buffer_store(self.query, low * factor, [v])
            T.buffer_store(self.query, high * factor, [v + heads.half])

        when(self.thread < heads.half, pair)
        spare = _padded(heads) // heads.lanes - heads.vectors
        if spare:
            place = self.thread + heads.vectors
            zeros = zero(heads.lanes)
            when(self.thread < spare, lambda: T.buffer_store(self.query, zeros, [place]))

    def _chunk(self, first: Expr) -> None:
        """Emit the attention to the positions from vector `first` of them on."""
        heads = self.heads
        product = bind(self._product(first))
        # The values are under way before the products are known.
        rows = heads.threads // self.strips
        count = self.groups // self.strips
        vectors = [bind(first + self.strip + i * self.strips) for i in range(count)]
        column = self.column
        if rows > heads.vectors:
            column = bind(T.min(column, heads.vectors - 1))
        base = bind(self.cache.first_value(self.s, self.kv))
        values = [
            [
                bind(self.cache.values[base + T.min(v * LANES + lane, self.last), column])
                for lane in range(LANES)
            ]
            for v in vectors
        ]
        T.buffer_store(self.products, product, [self.thread])
        barrier()
        self._mix([self._scores(i, v) for i, v in enumerate(vectors)], values)
        barrier()

    def _product(self, first: Expr) -> Expr:
        """Return the products of a slice of the query and the keys of four positions."""
        group, part = bind(self.thread % self.groups), bind(self.thread // self.groups)
        place = bind(T.min(first + group, self.last // LANES))
        elements = [bind(part + k * self.slices) for k in range(self.steps)]
        padded = self.steps * self.slices > self.heads.head_dim
        keys = [
            bind(self.cache.keys[self.s, self.kv, self._element(d) if padded else d, place])
            for d in elements
        ]
        total = zero(LANES)
        for d, key in zip(elements, keys, strict=True):
            total = total + splat(bind(self.scalars[d]), LANES) * key
        return total

    def _element(self, d: Expr) -> Expr:
        return T.min(d, self.heads.head_dim - 1)

    def _scores(self, i: int, v: Expr) -> list[Expr]:
        """Return the scores of four positions, the i-th of this strip's vectors of a chunk."""
        total = self.products[self.strip + i * self.strips]
        for part in range(1, self.slices):
            total = total + self.products[self.strip + i * self.strips + part * self.groups]
        total = bind(total)
        scores = (extract(total, lane, LANES) for lane in range(LANES))
        return [
            held(T.if_then_else(v * LANES + lane <= self.last, score, T.float32(MASKED)))
            for lane, score in enumerate(scores)
        ]

    def _mix(self, scores: list[list[Expr]], values: list[list[Expr]]) -> None:
        """Emit one step of the strip's softmax."""
        lanes = self.heads.lanes
        top = self.top[0]
        for score in (score for group in scores for score in group):
            top = T.max(top, score)
        top = held(top)
        factor = held(T.exp2(self.top[0] - top))
        total, mixture = self.sum[0] * factor, self.mixture[0] * splat(factor, lanes)
        for group, rows in zip(scores, values, strict=True):
            for score, value in zip(group, rows, strict=True):
                weight = held(T.exp2(score - top))
                total, mixture = total + weight, mixture + splat(weight, lanes) * value
        T.buffer_store(self.sum, total, [0])
        T.buffer_store(self.mixture, mixture, [0])
        T.buffer_store(self.top, top, [0])

    def _finish(self, t: Expr, h: Expr, writers: Expr) -> None:
        """Emit the sum over the strips and its store by the first `writers` threads."""
        heads = self.heads
        T.buffer_store(self.mixtures, self.mixture[0], [self.thread])

        def leave() -> None:
            T.buffer_store(self.tops, self.top[0], [self.strip])
            T.buffer_store(self.sums, self.sum[0], [self.strip])

        when(self.column == 0, leave)
        barrier()

        def add() -> None:
            top: Any = self.tops[0]
            for k in range(1, self.strips):
                top = T.max(top, self.tops[k])
            top = bind(top)
            total, mixture = T.float32(0.0), zero(heads.lanes)
            for k in range(self.strips):
                factor = bind(T.exp2(self.tops[k] - top))
                part = self.mixtures[self.thread + k * self.across]
                total, mixture = total + factor * self.sums[k], mixture + factor_of(factor) * part
            inverse = splat(bind(T.float32(1.0) / total), heads.lanes)
            T.buffer_store(self.cache.out, mixture * inverse, [t, h * heads.vectors + self.thread])

        def factor_of(value: Expr) -> Expr:
            return splat(value, heads.lanes)

        when(self.thread < writers, add)


def _shares(heads: Heads) -> tuple[int, int, int, int]:
    """Return how the threads share a chunk.

    Slices of a head and vectors of positions, then vectors of a head and strips of positions.
    """
    slices = power_of_two(ceil_div(heads.head_dim, SLICE))
    across = power_of_two(heads.vectors)
    return slices, heads.threads // slices, across, heads.threads // across


def _padded(heads: Heads) -> int:
    """Return the elements of a query that whole slices have."""
    slices = _shares(heads)[0]
    step = max(slices, heads.lanes)
    return ceil_div(heads.head_dim, step) * step
