"""Writing new keys, rotated, and values into the cache.

The scale of an int8 key or value is of its whole head, which each thread reads: what it reads again
lies in the cache nearest to it, and no thread has to wait for another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..tir import Buffer, Expr, bind, shape, when
from .attention_heads import Columns, Heads, rotate
from .attention_vectors import matrix_of_vectors
from .cached_words import Store, heads_top
from .kernel import build, ceil_div, launch

TOKENS = 32
"""Tokens side by side in a work-group, by default: they are neighbours in the cache of keys."""


def append_kv(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the append, in place; a thread takes two vectors of a head of a token."""
    heads = Heads.of(parameters, target)

    def body(qkv: Buffer, sequence: Buffer, position: Buffer, rope: Buffer, *cache: Buffer) -> None:
        inputs, table = (matrix_of_vectors(x, heads.lanes) for x in (qkv, rope))
        store = Store(heads, cache)

        def pair(t: Expr, index: Expr) -> None:
            kv, v = bind(index // heads.half), bind(index % heads.half)
            s, place = bind(sequence[t]), bind(position[t])

            def head(first: int, v: Expr) -> tuple[Expr, Expr]:
                column = (first + kv) * heads.vectors
                return Columns(heads, inputs, column, lambda token: token).pair(t, v)

            def rotated(v: Expr) -> tuple[Expr, Expr]:
                return rotate(heads, table, place, v, *head(heads.heads, v))

            def value(v: Expr) -> tuple[Expr, Expr]:
                return head(heads.heads + heads.kv_heads, v)

            tops = [
                heads_top(heads, pairs) if store.stored.scaled else None
                for pairs in (rotated, value)
            ]
            store.put((s, kv, place), v, rotated(v), value(v), tops)

        tokens = shape(qkv)[0]
        with _threads(heads, tokens) as (t, index):
            exists = index < heads.kv_heads * heads.half
            when(exists if tokens == 1 else T.And(exists, t < tokens), lambda: pair(t, index))

    return build(function, body)


@contextmanager
def _threads(heads: Heads, tokens: Expr) -> Iterator[tuple[Expr, Expr]]:
    """Launch a thread for each token and pair of vectors; yields the two."""
    pairs = heads.kv_heads * heads.half
    if isinstance(tokens, int) and tokens == 1:
        with launch([ceil_div(pairs, heads.threads)], [heads.threads]) as (block, thread):
            yield 0, bind(block * heads.threads + thread)
        return
    counts = [count for count in (8, 16, TOKENS, 64) if count <= heads.threads]
    wide = choose("tokens", counts, min(TOKENS, counts[-1]))
    down = heads.threads // wide
    grid = [ceil_div(tokens, wide), ceil_div(pairs, down)]
    with launch(grid, [wide, down]) as (x, y, token, row):
        yield bind(x * wide + token), bind(y * down + row)
