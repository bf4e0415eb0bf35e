"""Writing new keys, rotated, and values into the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, shape, when
from .attention_heads import Columns, Heads, rotate
from .attention_vectors import extract, matrix_of_vectors
from .kernel import build, ceil_div, launch

TOKENS = 32
"""Tokens side by side in a work-group: positions are neighbours in the cache of keys."""


def append_kv(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the append, in place; a thread takes two vectors of a head of a token."""
    heads = Heads.of(parameters, target)

    def body(
        qkv: Buffer, sequence: Buffer, position: Buffer, rope: Buffer, keys: Buffer, values: Buffer
    ) -> None:
        inputs, table, lines = (matrix_of_vectors(x, heads.lanes) for x in (qkv, rope, values))

        def pair(t: Expr, index: Expr) -> None:
            kv, v = bind(index // heads.half), bind(index % heads.half)
            s, place = bind(sequence[t]), bind(position[t])

            def head(first: int) -> tuple[Expr, Expr]:
                column = (first + kv) * heads.vectors
                return Columns(heads, inputs, column, lambda token: token).pair(t, v)

            key = rotate(heads, table, place, v, *head(heads.heads))
            value = head(heads.heads + heads.kv_heads)
            for half in range(2):
                at = v + half * heads.half
                T.buffer_store(lines, value[half], [s, kv, place, at])
                for lane in range(heads.lanes):
                    element = extract(key[half], lane, heads.lanes)
                    T.buffer_store(keys, element, [s, kv, at * heads.lanes + lane, place])

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
    down = heads.threads // TOKENS
    grid = [ceil_div(tokens, TOKENS), ceil_div(pairs, down)]
    with launch(grid, [TOKENS, down]) as (x, y, token, row):
        yield bind(x * TOKENS + token), bind(y * down + row)
