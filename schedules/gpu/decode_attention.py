"""Attention of one new token over the cache, to which its key and value are added.

A work-group takes a query head, its own key and value straight from the token, rounded as the cache
has them: what others of them write to the cache may arrive at any time, so that place is never
read. Where the cache is long, the work-groups of a head share its positions, and a second launch
puts their parts together. They do so from a position on, not from a capacity on: a cache that has
grown gives the bits of one that was as large from the start.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..kv_cache import LEVELS, SMALLEST
from ..tir import Buffer, Expr, bind, branch, lanes_of, when
from .attention_heads import MASKED, Heads, rotate
from .attention_vectors import splat, total, zero
from .cached_token import Cache, Token, met
from .cached_words import put_key, stored_row
from .elements import threads
from .kernel import Gpu, barrier, build, elements, launch, registers, scratch, shared
from .token_words import largest
from .vectors import LANES, held

LONG = 2560
"""Position from which on a head is shared."""
SHARES = 8
"""Work-groups that share a head, by default."""


def decode_attention(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the attention of a new token."""
    gpu = Gpu(target)
    heads = replace(Heads.of(parameters, target), threads=gpu.threads)

    def body(*arguments: Buffer) -> None:
        cache, written = Cache(heads, arguments), arguments[4:-1]

        def short() -> None:
            with launch([heads.heads], [heads.threads]) as (h, thread):
                _NewToken(heads, cache, written, thread, T.int32(0), 1).attend_whole(h)

        # A shorter cache has no later position.
        branch(cache.capacity <= LONG, short, lambda: _shared(gpu, heads, cache, written))

    return build(function, body)


def _shared(gpu: Gpu, heads: Heads, cache: Cache, written: tuple[Buffer, ...]) -> None:
    """Emit a launch in which work-groups share a head, and one that adds their parts."""
    width = heads.heads * heads.vectors
    shares = choose("shares", (4, SHARES, 16), SHARES)
    parts = scratch([shares, width], heads.dtype)
    tops, sums = scratch([shares, heads.heads]), scratch([shares, heads.heads])
    with launch([heads.heads, shares], [heads.threads]) as (h, share, thread):
        token = _NewToken(heads, cache, written, thread, share, shares)
        token.attend_share(h, parts, tops, sums)

    def add(column: Expr) -> None:
        h = bind(column // heads.vectors)
        found = [(tops[i, h], sums[i, h], parts[i, column]) for i in range(shares)]
        _, weight, mixture = met(found, heads.lanes)
        inverse = splat(bind(T.float32(1.0) / weight), heads.lanes)
        T.buffer_store(cache.out, mixture * inverse, [0, column])

    elements(width, threads(gpu), add)


class _NewToken(Token):
    """The work-group of a query head of the new token, or of a share of the cache's positions."""

    def __init__(
        self,
        heads: Heads,
        cache: Cache,
        written: tuple[Buffer, ...],
        thread: Expr,
        share: Expr,
        shares: int,
    ) -> None:
        super().__init__(heads, cache, thread)
        self.written, self.share, self.most_shares = written, share, shares
        self.shares: Expr = shares
        self.place = share
        self.key = shared([heads.vectors], heads.dtype)
        if self.stored.scaled:
            self.value, self.own = (shared([heads.vectors], heads.dtype) for _ in range(2))
            self.own_value = registers([1], heads.dtype)

    def attend_whole(self, h: Expr) -> None:
        """Emit the attention of head h."""

        def put(top: Expr, weight: Expr, mixture: Expr) -> None:
            inverse = splat(bind(T.float32(1.0) / weight), self.heads.lanes)
            place = [0, h * self.heads.vectors + self.thread]
            T.buffer_store(self.cache.out, mixture * inverse, place)

        self._attend_new(h, put)

    def attend_share(self, h: Expr, parts: Buffer, tops: Buffer, sums: Buffer) -> None:
        """Emit the attention of head h to its share of the positions."""

        def put(top: Expr, weight: Expr, mixture: Expr) -> None:
            place = [self.share, h * self.heads.vectors + self.thread]
            T.buffer_store(parts, mixture, place)

            def once() -> None:
                T.buffer_store(tops, top, [self.share, h])
                T.buffer_store(sums, weight, [self.share, h])

            when(self.thread == 0, once)

        self._attend_new(h, put)

    def _attend_new(self, h: Expr, put: Any) -> None:
        """Emit ``put(largest score, sum, mixture)`` of each thread's vector of the head."""
        last = bind(self.cache.position[0])
        chunks = bind((T.max(last, 1) - 1) // (self.groups * LANES) + 1)
        if self.most_shares > 1:
            # Before that the first share has all chunks, and the others begin behind them.
            alone = bind(last < LONG)
            self.shares = held(T.if_then_else(alone, 1, self.most_shares))
            self.place = held(T.if_then_else(alone, self.share * chunks, self.share))
        self._begin(0, h)
        self._append(h)
        # A share without positions takes a turn all the same, in which it sees none.
        turns = bind(T.max(chunks - self.place + self.shares - 1, self.shares) // self.shares)
        self._stream(turns)
        self._leave()
        if self.stored.scaled:
            when(self.thread < self.heads.vectors, lambda: self._round(h))
            barrier()
        when(self.thread < self.heads.vectors, lambda: put(*self._with_own(self._met())))

    def _first(self, turn: Expr) -> Expr:
        return (turn * self.shares + self.place) * self.groups

    def _sees(self, position: Expr) -> Expr:
        return position < self.last

    def _value(self, position: Expr, column: Expr) -> tuple[Expr, Expr]:
        row, seen = self.base + position, self._sees(position)
        stored = self.cache.values[row, column]
        if self.stored.scaled:
            # Any code is a number, only its scale may be none.
            place = self.base + T.min(position, self.last)
            scale = T.if_then_else(seen, self.cache.value_scales[row], T.float32(0.0))
            return self.cache.values[place, column], scale
        nothing = splat(tirx.const(0, str(self.cache.values.dtype).split("x")[0]), lanes_of(stored))
        return T.if_then_else(seen, stored, nothing), None

    def _append(self, h: Expr) -> None:
        """Emit the rotated key, and by one work-group its place in the cache, with the value's.

        What has a scale is stored by :meth:`_round`, once all of it is there.
        """
        heads, cache, v = self.heads, self.cache, self.thread

        def pair() -> None:
            key, value = (
                [bind(cache.qkv[0, first + v + half * heads.half]) for half in range(2)]
                for first in (
                    bind((heads.heads + self.kv) * heads.vectors),
                    bind((heads.heads + heads.kv_heads + self.kv) * heads.vectors),
                )
            )
            rotated = rotate(heads, cache.rope, self.last, v, *key)
            for half in range(2):
                own = rotated[half] if self.stored.scaled else self._own(rotated[half], None)
                T.buffer_store(self.key, own, [v + half * heads.half])
                if self.stored.scaled:
                    T.buffer_store(self.value, value[half], [v + half * heads.half])

            def keep() -> None:
                for half in range(2):
                    self._keep(v + half * heads.half, rotated[half], value[half], (None, None))

            if not self.stored.scaled:
                when(self._keeps(h), keep)

        when(v < heads.half, pair)

    def _keeps(self, h: Expr) -> Expr:
        """Return whether this is the work-group that writes to the cache."""
        return tirx.all(h % self.heads.group == 0, self.share == 0)

    def _keep(self, v: Expr, key: Expr, value: Expr, factors: tuple[Expr, Expr]) -> None:
        """Emit the write of vector v of the key and of the value."""
        place = (self.s, self.kv, self.last)
        put_key(self.written[0], self.heads, self.stored, place, v, key, factors[0])
        row = self.cache.first_value(self.s, self.kv) + self.last
        stored = stored_row(self.stored, value, factors[1])
        T.buffer_store(self.cache.values, stored, [row, v])

    def _own(self, vector: Expr, factor: Expr | None) -> Expr:
        """Return a vector as the cache will have it, without its scale."""
        return bind(self.stored.rounded(vector, factor))

    def _round(self, h: Expr) -> None:
        """Emit the rounded vectors of key and value, and their write to the cache."""
        v, fields = self.thread, (self.key, self.value)
        tops = [self._top(field) for field in fields]
        factors = tuple(held(T.float32(LEVELS) / top) for top in tops)
        scales = [held(top / T.float32(LEVELS)) for top in tops]
        key, value = (bind(field[v]) for field in fields)

        def keep() -> None:
            self._keep(v, key, value, factors)

            def once() -> None:
                row = self.cache.first_value(self.s, self.kv) + self.last
                T.buffer_store(self.written[2], scales[0], [self.s, self.kv, self.last])
                T.buffer_store(self.cache.value_scales, scales[1], [row])

            when(v == 0, once)

        when(self._keeps(h), keep)
        own = [
            self._own(vector, factor) * splat(scale, LANES)
            for vector, factor, scale in zip((key, value), factors, scales, strict=True)
        ]
        T.buffer_store(self.own, own[0], [v])
        # Nobody reads another's vector of the rounded value.
        T.buffer_store(self.own_value, own[1], [0])

    def _top(self, field: Buffer) -> Expr:
        """Return the largest magnitude of a head."""
        top: Expr = T.float32(LEVELS * SMALLEST)
        for v in range(self.heads.vectors):
            top = T.max(top, largest(bind(field[v])))
        return held(top)

    def _with_own(self, others: tuple[Expr, Expr, Expr]) -> tuple[Expr, Expr, Expr]:
        """Return a softmax with the token's own key and value added, in the first share."""
        heads = self.heads
        product, key = zero(heads.lanes), self.own if self.stored.scaled else self.key
        for v in range(heads.vectors):
            product = product + self.query[v] * key[v]
        if self.stored.scaled:
            value = self.own_value[0]
        else:
            first = (heads.heads + heads.kv_heads + self.kv) * heads.vectors
            value = self._own(bind(self.cache.qkv[0, first + self.thread]), None)
        score = total(bind(product), heads.lanes)
        mine = held(T.if_then_else(self.share == 0, score, T.float32(MASKED)))
        weight = held(T.if_then_else(self.share == 0, T.float32(1.0), T.float32(0.0)))
        own = (mine, weight, splat(weight, heads.lanes) * value)
        return met([others, own], heads.lanes)
