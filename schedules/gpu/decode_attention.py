"""Attention of one new token over the cache, to which its key and value are added.

A work-group takes a query head, its own key and value straight from the token: what others of them
write to the cache may arrive at any time, so that place is never read. Where the cache is long, the
work-groups of a head share its positions, and a second launch puts their parts together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, branch, when
from .attention_heads import MASKED, Heads, rotate
from .attention_vectors import extract, splat, total, zero
from .cached_token import Cache, Token, met
from .elements import threads
from .kernel import Gpu, build, elements, launch, scratch, shared
from .vectors import LANES, held

LONG = 2560
"""Positions of a cache from which on a head is shared."""
SHARES = 8
"""Work-groups that share a head."""


def decode_attention(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the attention of a new token."""
    gpu = Gpu(target)
    heads = replace(Heads.of(parameters, target), threads=gpu.threads)

    def body(*arguments: Buffer) -> None:
        cache, keys = Cache(heads, arguments), arguments[4]

        def short() -> None:
            with launch([heads.heads], [heads.threads]) as (h, thread):
                _NewToken(heads, cache, keys, thread, T.int32(0), 1).attend_whole(h)

        branch(cache.capacity < LONG, short, lambda: _shared(gpu, heads, cache, keys))

    return build(function, body)


def _shared(gpu: Gpu, heads: Heads, cache: Cache, keys: Buffer) -> None:
    """Emit a launch in which work-groups share a head, and one that adds their parts."""
    width = heads.heads * heads.vectors
    parts = scratch([SHARES, width], heads.dtype)
    tops, sums = scratch([SHARES, heads.heads]), scratch([SHARES, heads.heads])
    with launch([heads.heads, SHARES], [heads.threads]) as (h, share, thread):
        _NewToken(heads, cache, keys, thread, share, SHARES).attend_share(h, parts, tops, sums)

    def add(column: Expr) -> None:
        h = bind(column // heads.vectors)
        found = [(tops[i, h], sums[i, h], parts[i, column]) for i in range(SHARES)]
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
        keys: Buffer,
        thread: Expr,
        share: Expr,
        shares: int,
    ) -> None:
        super().__init__(heads, cache, thread)
        self.written, self.share, self.shares = keys, share, shares
        self.key = shared([heads.vectors], heads.dtype)

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
        self._begin(0, h)
        self._append(h)
        chunks = (T.max(self.last, 1) - 1) // (self.groups * LANES) + 1
        # A share without positions takes a turn all the same, in which it sees none.
        turns = bind(T.max(chunks - self.share + self.shares - 1, self.shares) // self.shares)
        self._stream(turns)
        self._leave()
        when(self.thread < self.heads.vectors, lambda: put(*self._with_own(self._met())))

    def _first(self, turn: Expr) -> Expr:
        return (turn * self.shares + self.share) * self.groups

    def _sees(self, position: Expr) -> Expr:
        return position < self.last

    def _value(self, position: Expr, column: Expr) -> Expr:
        stored = self.cache.values[self.base + position, column]
        return T.if_then_else(self._sees(position), stored, zero(self.heads.lanes))

    def _append(self, h: Expr) -> None:
        """Emit the rotated key, and by one work-group its place in the cache, with the value's."""
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
                T.buffer_store(self.key, rotated[half], [v + half * heads.half])

            def keep() -> None:
                for half in range(2):
                    at = v + half * heads.half
                    row = cache.first_value(self.s, self.kv) + self.last
                    T.buffer_store(cache.values, value[half], [row, at])
                    for lane in range(heads.lanes):
                        element = extract(rotated[half], lane, heads.lanes)
                        place = [self.s, self.kv, at * heads.lanes + lane, self.last]
                        T.buffer_store(self.written, element, place)

            when(tirx.all(h % heads.group == 0, self.share == 0), keep)

        when(v < heads.half, pair)

    def _with_own(self, others: tuple[Expr, Expr, Expr]) -> tuple[Expr, Expr, Expr]:
        """Return a softmax with the token's own key and value added, in the first share."""
        heads = self.heads
        product = zero(heads.lanes)
        for v in range(heads.vectors):
            product = product + self.query[v] * self.key[v]
        first = (heads.heads + heads.kv_heads + self.kv) * heads.vectors
        value = bind(self.cache.qkv[0, first + self.thread])
        score = total(bind(product), heads.lanes)
        mine = held(T.if_then_else(self.share == 0, score, T.float32(MASKED)))
        weight = held(T.if_then_else(self.share == 0, T.float32(1.0), T.float32(0.0)))
        own = (mine, weight, splat(weight, heads.lanes) * value)
        return met([others, own], heads.lanes)
