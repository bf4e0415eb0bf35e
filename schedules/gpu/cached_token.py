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
from .cached_words import Stored
from .kernel import barrier, ceil_div, loop, registers, shared
from .vectors import LANES, held, power_of_two

SLICE = 16
"""Elements of a head that a thread multiplies, all of whose keys it loads at once."""


class Cache:
    """The arguments of attention over a cache, viewed as vectors.

    Attributes
    ----------
    heads : Heads
        The shape.
    qkv, rope, out : Buffer
        A row for a token or position, vectors along it.
    sequence, position : Buffer
        Of each token.
    stored : Stored
        How keys and values are stored.
    keys : Buffer
        ``(S, Hkv, W, M / 4)``, vectors of the words of four positions.
    key_scales : Buffer
        ``(S, Hkv, M / 4)``, vectors of four positions, where there are scales.
    values : Buffer
        ``(S Hkv M, D / lanes)``, vectors of elements or of the words of as many.
    value_scales : Buffer
        ``(S Hkv M,)``, where there are scales.
    """

    def __init__(self, heads: Heads, arguments: tuple[Buffer, ...]) -> None:
        qkv, self.sequence, self.position, rope, *cache, out = arguments
        self.heads, lanes, dtype = heads, heads.lanes, heads.dtype
        self.stored = Stored.of(heads, cache)
        keys, values, *scales = cache
        self.tokens, self.capacity = qkv.shape[0], values.shape[2]
        self.qkv, self.rope, self.out = (
            view(x, [x.shape[0], x.shape[1] // lanes], dtype) for x in (qkv, rope, out)
        )
        sequences, kv_heads, words, capacity = keys.shape
        fours = capacity // LANES
        self.keys = view(keys, [sequences, kv_heads, words, fours], self.stored.keys_type)
        rows = sequences * kv_heads * capacity
        self.values = view(values, [rows, heads.vectors], self.stored.values_type)
        if scales:
            self.key_scales = view(scales[0], [sequences, kv_heads, fours], vector_type(LANES))
            self.value_scales = view(scales[1], [rows], "float32")

    def first_value(self, s: Expr, kv: Expr) -> Expr:
        """Return the row of position 0 of a head among the values."""
        return (s * self.heads.kv_heads + kv) * self.capacity


class Token:
    """The work-group of one token and query head. Make it at the top of a launch: it allocates."""

    def __init__(self, heads: Heads, cache: Cache, thread: Expr) -> None:
        self.heads, self.cache, self.thread = heads, cache, thread
        self.slices, self.groups, self.across, self.strips = _shares(heads)
        self.stored = cache.stored
        self.words = heads.head_dim // self.stored.per_word
        self.steps = ceil_div(self.words, self.slices)
        self.padded = _padded(heads, self.stored.per_word)
        self.query = shared([self.padded // heads.lanes], heads.dtype)
        self.scalars = view(self.query, [self.padded], "float32")
        self.products = shared([heads.threads], vector_type(LANES))
        self.mixtures = shared([heads.threads], heads.dtype)
        self.tops, self.sums = shared([self.strips]), shared([self.strips])
        self.mixture = registers([1], heads.dtype)
        self.top, self.sum = registers([1]), registers([1])
        self.keys = registers([self.steps], self.stored.keys_type)
        self.values = registers([self.groups // self.strips * LANES], self.stored.values_type)
        if self.stored.scaled:
            self.key_scale = registers([1], vector_type(LANES))
            self.value_scales = registers([self.groups // self.strips * LANES])

    def attend(self, t: Expr, h: Expr, wanted: Expr = True) -> None:
        """Emit the attention of head h of token t, where it is wanted."""
        heads = self.heads
        self._begin(t, h)
        turns, writers = self.last // (self.groups * LANES) + 1, heads.vectors
        if wanted is not True:
            turns, writers = (
                held(T.if_then_else(wanted, turns, 1)),
                held(T.if_then_else(wanted, writers, 0)),
            )
        self._stream(turns)
        self._leave()

        def put() -> None:
            _, total, mixture = self._met()
            inverse = splat(bind(T.float32(1.0) / total), heads.lanes)
            place = [t, h * heads.vectors + self.thread]
            T.buffer_store(self.cache.out, mixture * inverse, place)

        when(self.thread < writers, put)

    def _begin(self, t: Expr, h: Expr) -> None:
        """Emit what comes before the first barrier."""
        self.s, self.last = bind(self.cache.sequence[t]), bind(self.cache.position[t])
        self.kv = bind(h // self.heads.group)
        self.base = bind(self.cache.first_value(self.s, self.kv))
        self.column = bind(self.thread % self.across)
        self.strip = bind(self.thread // self.across)
        # The cache is under way before the query is known.
        self._read_keys(self._first(0))
        self._read_values(self._first(0))
        self._rotate_query(t, h)
        T.buffer_store(self.mixture, zero(self.heads.lanes), [0])
        T.buffer_store(self.top, T.float32(MASKED), [0])
        T.buffer_store(self.sum, T.float32(0.0), [0])

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
        spare = self.padded // heads.lanes - heads.vectors
        if spare:
            place = self.thread + heads.vectors
            zeros = zero(heads.lanes)
            when(self.thread < spare, lambda: T.buffer_store(self.query, zeros, [place]))

    def _sees(self, position: Expr) -> Expr:
        """Return whether the cache's position counts."""
        return position <= self.last

    def _value(self, position: Expr, column: Expr) -> tuple[Expr, Expr]:
        """Return a vector of a value, of any value where the position does not count; its scale."""
        row = self.base + T.min(position, self.last)
        scale = self.cache.value_scales[row] if self.stored.scaled else None
        return self.cache.values[row, column], scale

    def _first(self, turn: Expr) -> Expr:
        """Return the first vector of positions of a turn."""
        return turn * self.groups

    def _stream(self, turns: Expr) -> None:
        """Emit the attention to the chunks of so many turns; what a turn needs is read before."""
        barrier()
        with loop(turns) as turn:
            following = bind(self._first(turn + 1))
            T.buffer_store(self.products, self._product(), [self.thread])
            when(turn + 1 < turns, lambda: self._read_keys(following))
            barrier()
            vectors = self._vectors(self._first(turn))
            self._mix([self._scores(i, v) for i, v in enumerate(vectors)])
            when(turn + 1 < turns, lambda: self._read_values(following))
            barrier()

    def _vectors(self, first: Expr) -> list[Expr]:
        """Return the strip's vectors of positions of a chunk."""
        count = self.groups // self.strips
        return [bind(first + self.strip + i * self.strips) for i in range(count)]

    def _read_keys(self, first: Expr) -> None:
        """Emit the reading of the keys of four positions of a chunk, a slice of the head."""
        place = bind(T.min(first + self.thread % self.groups, self.last // LANES))
        padded = self.steps * self.slices > self.words
        for k, w in enumerate(self._words()):
            word = T.min(w, self.words - 1) if padded else w
            T.buffer_store(self.keys, self.cache.keys[self.s, self.kv, word, place], [k])
        if self.stored.scaled:
            T.buffer_store(self.key_scale, self.cache.key_scales[self.s, self.kv, place], [0])

    def _read_values(self, first: Expr) -> None:
        """Emit the reading of a vector of the values of the strip's positions of a chunk."""
        column = self.column
        if self.heads.threads // self.strips > self.heads.vectors:
            column = bind(T.min(column, self.heads.vectors - 1))
        for i, v in enumerate(self._vectors(first)):
            for lane in range(LANES):
                value, scale = self._value(v * LANES + lane, column)
                T.buffer_store(self.values, value, [i * LANES + lane])
                if scale is not None:
                    T.buffer_store(self.value_scales, scale, [i * LANES + lane])

    def _words(self) -> list[Expr]:
        """Return the words of the thread's slice of a head."""
        part = bind(self.thread // self.groups)
        return [bind(part + k * self.slices) for k in range(self.steps)]

    def _product(self) -> Expr:
        """Return the products of a slice of the query and the keys of four positions."""
        total, per = zero(LANES), self.stored.per_word
        for k, w in enumerate(self._words()):
            for c, keys in enumerate(self.stored.positions(self.keys[k])):
                total = total + splat(bind(self.scalars[w * per + c]), LANES) * keys
        return total * self.key_scale[0] if self.stored.scaled else total

    def _scores(self, i: int, v: Expr) -> list[Expr]:
        """Return the scores of four positions, the i-th of this strip's vectors of a chunk."""
        total = self.products[self.strip + i * self.strips]
        for part in range(1, self.slices):
            total = total + self.products[self.strip + i * self.strips + part * self.groups]
        total = bind(total)
        scores = (extract(total, lane, LANES) for lane in range(LANES))
        return [
            held(T.if_then_else(self._sees(v * LANES + lane), score, T.float32(MASKED)))
            for lane, score in enumerate(scores)
        ]

    def _mix(self, scores: list[list[Expr]]) -> None:
        """Emit one step of the strip's softmax."""
        lanes = self.heads.lanes
        top = self.top[0]
        for score in (score for group in scores for score in group):
            top = T.max(top, score)
        top = held(top)
        factor = held(T.exp2(self.top[0] - top))
        total, mixture = self.sum[0] * factor, self.mixture[0] * splat(factor, lanes)
        for i, score in enumerate(score for group in scores for score in group):
            weight = held(T.exp2(score - top))
            total = total + weight
            if self.stored.scaled:
                weight = held(weight * self.value_scales[i])
            mixture = mixture + splat(weight, lanes) * self.stored.row(self.values[i])
        T.buffer_store(self.sum, total, [0])
        T.buffer_store(self.mixture, mixture, [0])
        T.buffer_store(self.top, top, [0])

    def _leave(self) -> None:
        """Emit the exchange of what the strips have."""
        T.buffer_store(self.mixtures, self.mixture[0], [self.thread])

        def leave() -> None:
            T.buffer_store(self.tops, self.top[0], [self.strip])
            T.buffer_store(self.sums, self.sum[0], [self.strip])

        when(self.column == 0, leave)
        barrier()

    def _met(self) -> tuple[Expr, Expr, Expr]:
        """Return the largest score of all strips, their sum, and the thread's vector of the mix."""
        lanes = self.heads.lanes
        parts = [
            (self.tops[k], self.sums[k], self.mixtures[self.thread + k * self.across])
            for k in range(self.strips)
        ]
        return met(parts, lanes)


def met(parts: list[tuple[Expr, Expr, Expr]], lanes: int) -> tuple[Expr, Expr, Expr]:
    """Return parts of a softmax as one: its largest score, its sum and its mixture of values."""
    top: Any = parts[0][0]
    for part, _, _ in parts[1:]:
        top = T.max(top, part)
    top = held(top)
    total, mixture = T.float32(0.0), zero(lanes)
    for part, sum_, mixed in parts:
        factor = held(T.exp2(part - top))
        total, mixture = total + factor * sum_, mixture + splat(factor, lanes) * mixed
    return top, held(total), bind(mixture)


def _shares(heads: Heads) -> tuple[int, int, int, int]:
    """Return how the threads share a chunk.

    Slices of a head and vectors of positions, then vectors of a head and strips of positions.
    """
    slices = power_of_two(ceil_div(heads.head_dim, SLICE))
    across = power_of_two(heads.vectors)
    return slices, heads.threads // slices, across, heads.threads // across


def _padded(heads: Heads, per_word: int) -> int:
    """Return the elements of a query that whole slices have."""
    slices = _shares(heads)[0]
    step = max(slices * per_word, heads.lanes)
    return ceil_div(heads.head_dim, step) * step
