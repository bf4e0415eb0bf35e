"""Attention of new tokens over the cache of keys and values.

There are two launches. In the first, a work-group has a block of tokens and streams the keys and
values past all of them, if they are of one sequence, as in a prompt; `cached_fragments.py` has that
of devices whose matrix units' fragments are known. In the second, each token of the other blocks is
by itself, see :class:`Token`. A work-group without work takes one turn of its loops and stores
nothing: barriers must not be under a branch, nor in a loop without turns (PoCL 3.1). A single token
that is written has a kernel of its own, `decode_attention.py`.

The capacity of the cache must be a multiple of 4, so that a vector of keys ends inside it.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, branch, when
from .attention_heads import Columns, Heads, Operand, RotatedColumns, Rows
from .attention_softmax import LARGE_BLOCKS, SMALL_BLOCKS, Attention, block_shape
from .attention_vectors import extract, splat, times, view
from .cached_fragments import Layout, launch_fragments
from .cached_members import Members, of_one_sequence
from .cached_token import Cache, Token
from .fragments import Lane
from .kernel import barrier, build, ceil_div, launch, loop, registers
from .vectors import LANES, held

SEVERAL = 64
"""Up to this many tokens blocks are small, and each token has a work-group where they are of
several sequences; more are a prompt, of which few tokens need one."""


def cached_attention(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out attention over the cache, for any number of tokens."""
    heads = Heads.of(parameters, target)

    def body(*arguments: Buffer) -> None:
        if heads.shared_bytes:
            _blocks(heads, target, arguments)
        else:
            _each(heads, arguments)

    return build(function, body)


def _each(heads: Heads, arguments: tuple[Buffer, ...]) -> None:
    """Launch a work-group for each token and head."""
    cache = Cache(heads, arguments)
    with launch([heads.heads, cache.tokens], [heads.threads]) as (h, t, thread):
        Token(heads, cache, thread).attend(t, h)


def _blocks(heads: Heads, target: Target, arguments: tuple[Buffer, ...]) -> None:
    """Launch the blocks of tokens of one sequence, then the tokens of other blocks."""
    cache = Cache(heads, arguments)
    fragments = Layout.choose(cache, target)

    def emit(choices: tuple[tuple[int, int], ...], several: bool) -> None:
        queries, keys = block_shape(heads, choices)
        blocks = ceil_div(cache.tokens, queries)
        with launch([heads.heads, blocks], [heads.threads]) as (h, block, thread):
            # The last tokens of a prompt see the most keys, so they begin first.
            first = bind((blocks - 1 - block) * queries)
            wanted = of_one_sequence(cache, first, queries)
            _Block(heads, cache, thread, first, (queries, keys)).attend(h, wanted)
        _others(heads, cache, queries, 1 if several else queries)

    def prompt() -> None:
        if fragments is None:
            emit(LARGE_BLOCKS, False)
            return
        launch_fragments(cache, fragments)
        _others(heads, cache, fragments.queries, fragments.queries, True)

    branch(cache.tokens <= SEVERAL, lambda: emit(SMALL_BLOCKS, True), prompt)


def _others(heads: Heads, cache: Cache, queries: int, count: int, skips: bool = False) -> None:
    """Launch the tokens of the blocks that are not of one sequence, so many to a work-group.

    On devices with fragments it `skips` the other blocks, of which it knows by a subgroup.
    """
    with launch([heads.heads, ceil_div(cache.tokens, count)], [heads.threads]) as (
        h,
        group,
        thread,
    ):
        token, first = Token(heads, cache, thread), bind(group * count)
        block = bind(first // queries * queries)
        same = (
            Members(cache, block, queries, Lane().index).same()
            if skips
            else of_one_sequence(cache, block, queries)
        )
        wanted = bind(same == 0)
        if count == 1:
            token.attend(first, h, wanted)
            return
        with loop(T.if_then_else(wanted, count, 0 if skips else 1)) as i:
            place = bind(first + i)
            exists = tirx.all(wanted, place < cache.tokens)
            token.attend(bind(T.min(place, cache.tokens - 1)), h, exists)
            barrier()


class _CachedKeys(Rows):
    """A block of the cache's keys, turned so that a row is a position."""

    def __init__(self, heads: Heads, thread: Expr, count: int, cache: Cache) -> None:
        super().__init__(heads, thread, count, cache.capacity)
        self.cache = cache
        self.scalars = view(self.buffer, [count, heads.pitch * heads.lanes], "float32")

    def stage_positions(self, s: Expr, kv: Expr, first: Expr, last: Expr) -> None:
        """Emit the copy of the positions from `first`, a multiple of 4, on; none is past `last`.

        Rows past it hold what the vector with `last` holds.
        """
        heads, stored, cache = self.heads, self.cache.stored, self.cache
        words = heads.head_dim // stored.per_word
        items, loaded = words * (self.count // LANES), []
        for step in range(ceil_div(items, heads.threads)):
            item = bind(self.thread + step * heads.threads)
            index = bind(T.min(item, items - 1))
            # Neighbouring threads take neighbouring elements, so that they write to other banks.
            w, group = bind(index % words), bind(index // words)
            place = bind(T.min(first // LANES + group, last // LANES))
            scale = bind(cache.key_scales[s, kv, place]) if stored.scaled else None
            loaded.append((w, group, item, bind(cache.keys[s, kv, w, place]), scale))
        for w, group, item, vector, scale in loaded:

            def write(
                w: Expr = w, group: Expr = group, vector: Expr = vector, scale: Expr = scale
            ) -> None:
                for c, keys in enumerate(stored.positions(vector)):
                    keys = times(keys, scale)
                    for lane in range(LANES):
                        at = [group * LANES + lane, w * stored.per_word + c]
                        T.buffer_store(self.scalars, extract(keys, lane, LANES), at)

            when(item < items, write)


class _CachedValues(Columns):
    """The values of a head in the cache, from position 0 on at a row."""

    def __init__(self, heads: Heads, cache: Cache, base: Expr) -> None:
        super().__init__(heads, cache.values, 0, lambda place: base + place)
        self.cache = cache

    def vector(self, token: Expr, v: Expr) -> Expr:
        """Return vector v of a position."""
        stored = self.cache.stored
        found = stored.row(super().vector(token, v))
        if not stored.scaled:
            return found
        scale = bind(self.cache.value_scales[self.row(token)])
        return found * splat(scale, self.heads.lanes)


class _Block:
    """A block of tokens of one sequence. Make it at the top of a launch: it allocates."""

    def __init__(
        self, heads: Heads, cache: Cache, thread: Expr, first: Expr, size: tuple[int, int]
    ) -> None:
        self.heads, self.cache, self.first = heads, cache, first
        queries, keys = size
        self.count = keys
        self.query = Rows(heads, thread, queries, cache.tokens)
        self.key = _CachedKeys(heads, thread, keys, cache)
        self.value = Rows(heads, thread, keys, cache.capacity)
        self.attention = Attention(heads, thread, self.query, keys)

    def _token(self, row: Expr) -> Expr:
        return T.min(self.first + row, self.cache.tokens - 1)

    def attend(self, h: Expr, wanted: Expr) -> None:
        """Emit the attention of head h of the tokens, where `wanted` is not 0."""
        heads, cache = self.heads, self.cache
        s, kv = bind(cache.sequence[self.first]), bind(h // heads.group)
        latest = registers([1], "int32")
        T.buffer_store(latest, cache.position[self.first], [0])
        with loop(self.query.count - 1) as row:
            place = bind(self._token(row + 1))
            T.buffer_store(latest, T.max(latest[0], cache.position[place]), [0])
        last = held(latest[0])
        queries = Columns(heads, cache.qkv, bind(h * heads.vectors), lambda t: t)
        self.query.stage(
            RotatedColumns(queries, cache.rope, lambda t: cache.position[t]), self.first
        )
        base = bind(cache.first_value(s, kv))
        values = _CachedValues(heads, cache, base)
        places = [bind(cache.position[self._token(row)]) for row in self.attention.products.rows]
        self.value.tokens = bind(last + 1)

        def stage(block: Expr) -> tuple[Operand, Operand]:
            self.key.stage_positions(s, kv, block, last)
            self.value.stage(values, block)
            return self.key, self.value

        def choose(i: int, key: Expr, score: Expr, hidden: float) -> Expr:
            return T.if_then_else(key <= places[i], score, T.float32(hidden))

        turns = T.if_then_else(wanted != 0, last // self.count + 1, 1)
        mixture = self.attention.attend(0, held(turns), stage, choose)

        def write(row: Expr, v: Expr, low: Expr, high: Expr) -> None:
            token, column = bind(self.first + row), bind(h * heads.vectors + v)
            T.buffer_store(cache.out, low, [token, column])
            T.buffer_store(cache.out, high, [token, column + heads.half])

        exists = T.if_then_else(wanted != 0, cache.tokens, 0)
        mixture.store(lambda row: self.first + row < exists, write)
