"""Attention of new tokens over the cache of keys and values.

A token is the work of a work-group for each head, see :class:`Token`. Where the number of tokens is
not known, there are two launches. In the first, a work-group has a block of tokens and streams the
keys and values past all of them, if they are of one sequence, as in a prompt. In the second, each
token of the other blocks is by itself. A work-group without work takes one turn of its loops and
stores nothing: barriers must not be under a branch, nor in a loop without turns (PoCL 3.1).

The capacity of the cache must be a multiple of 4, so that a vector of keys ends inside it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, branch, when
from .attention_heads import Columns, Heads, Operand, RotatedColumns, Rows
from .attention_softmax import QUERIES, Attention, keys_of_block
from .attention_vectors import extract, view
from .cached_token import Cache, Token
from .kernel import Gpu, barrier, build, ceil_div, launch, loop
from .vectors import LANES, held

FEW = 4
"""Fewer tokens than this of a block are computed one by one."""
SEVERAL = 4 * QUERIES
"""Up to this many tokens each has a work-group; of more, which are a prompt, few have work."""


def cached_attention(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out attention over the cache, for one token or any number."""
    heads = Heads.of(parameters, target)

    def body(*arguments: Buffer) -> None:
        if arguments[0].shape[0] == 1:
            _one(replace(heads, threads=Gpu(target).threads), arguments)
        elif heads.shared_bytes:
            _blocks(heads, arguments)
        else:
            _each(heads, arguments)

    return build(function, body)


def _one(heads: Heads, arguments: tuple[Buffer, ...]) -> None:
    """Launch the attention of a single token."""
    cache = Cache(heads, arguments)
    with launch([heads.heads], [heads.threads]) as (h, thread):
        Token(heads, cache, thread).attend(0, h)


def _each(heads: Heads, arguments: tuple[Buffer, ...]) -> None:
    """Launch a work-group for each token and head."""
    cache = Cache(heads, arguments)
    with launch([heads.heads, cache.tokens], [heads.threads]) as (h, t, thread):
        Token(heads, cache, thread).attend(t, h)


def _blocks(heads: Heads, arguments: tuple[Buffer, ...]) -> None:
    """Launch the blocks of tokens of one sequence, then the tokens of other blocks."""
    cache = Cache(heads, arguments)
    blocks = ceil_div(cache.tokens, QUERIES)
    with launch([heads.heads, blocks], [heads.threads]) as (h, block, thread):
        first = bind(block * QUERIES)
        _Block(heads, cache, thread, first).attend(h, _of_one_sequence(cache, first))
    branch(
        cache.tokens <= SEVERAL,
        lambda: _others(heads, cache, 1),
        lambda: _others(heads, cache, QUERIES),
    )


def _others(heads: Heads, cache: Cache, count: int) -> None:
    """Launch the tokens of the blocks that are not of one sequence, so many to a work-group."""
    with launch([heads.heads, ceil_div(cache.tokens, count)], [heads.threads]) as (
        h,
        group,
        thread,
    ):
        token, first = Token(heads, cache, thread), bind(group * count)
        wanted = bind(_of_one_sequence(cache, bind(first // QUERIES * QUERIES)) == 0)
        if count == 1:
            token.attend(first, h, wanted)
            return
        with loop(T.if_then_else(wanted, count, 1)) as i:
            place = bind(first + i)
            exists = tirx.all(wanted, place < cache.tokens)
            token.attend(bind(T.min(place, cache.tokens - 1)), h, exists)
            barrier()


def _of_one_sequence(cache: Cache, first: Expr) -> Expr:
    """Return 1 where a block's tokens are of one sequence and worth taking together, else 0."""
    # A product, since a chain of conditions would be as many branches.
    same = T.cast(first + FEW <= cache.tokens, "int32")
    for row in range(1, QUERIES):
        token = T.min(first + row, cache.tokens - 1)
        same = same * T.cast(cache.sequence[token] == cache.sequence[first], "int32")
    return held(same)


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
        heads, items = self.heads, self.heads.head_dim * (self.count // LANES)
        loaded = []
        for step in range(ceil_div(items, heads.threads)):
            item = bind(self.thread + step * heads.threads)
            index = bind(T.min(item, items - 1))
            # Neighbouring threads take neighbouring elements, so that they write to other banks.
            d, group = bind(index % heads.head_dim), bind(index // heads.head_dim)
            place = bind(T.min(first // LANES + group, last // LANES))
            loaded.append((d, group, item, bind(self.cache.keys[s, kv, d, place])))
        for d, group, item, vector in loaded:

            def write(d: Expr = d, group: Expr = group, vector: Expr = vector) -> None:
                for lane in range(LANES):
                    element = extract(vector, lane, LANES)
                    T.buffer_store(self.scalars, element, [group * LANES + lane, d])

            when(item < items, write)


class _Block:
    """A block of tokens of one sequence. Make it at the top of a launch: it allocates."""

    def __init__(self, heads: Heads, cache: Cache, thread: Expr, first: Expr) -> None:
        self.heads, self.cache, self.first = heads, cache, first
        keys = keys_of_block(heads)
        self.count = keys
        self.query = Rows(heads, thread, QUERIES, cache.tokens)
        self.key = _CachedKeys(heads, thread, keys, cache)
        self.value = Rows(heads, thread, keys, cache.capacity)
        self.attention = Attention(heads, thread, self.query, keys)

    def _token(self, row: Expr) -> Expr:
        return T.min(self.first + row, self.cache.tokens - 1)

    def attend(self, h: Expr, wanted: Expr) -> None:
        """Emit the attention of head h of the tokens, where `wanted` is not 0."""
        heads, cache = self.heads, self.cache
        s, kv = bind(cache.sequence[self.first]), bind(h // heads.group)
        last = cache.position[self.first]
        for row in range(1, QUERIES):
            last = T.max(last, cache.position[self._token(row)])
        last = bind(last)
        queries = Columns(heads, cache.qkv, bind(h * heads.vectors), lambda t: t)
        self.query.stage(
            RotatedColumns(queries, cache.rope, lambda t: cache.position[t]), self.first
        )
        base = bind(cache.first_value(s, kv))
        values = Columns(heads, cache.values, 0, lambda place: base + place)
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
