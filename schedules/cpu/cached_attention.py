"""Attention of new tokens over the cache of keys and values.

Positions are the lanes of the keys, so a score is a product of scalars of the query by vectors of
the cache. The rows of a register tile are the query heads that share a key head, for one token, or
else one head of several tokens of a sequence. The cache beyond a token's position is memory that
nothing was written to: its scores are replaced before use, its values are never read.

The capacity of the cache must be a multiple of 16, so that a vector of keys ends inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..kv_cache import CacheFormat, code
from ..tir import (
    Buffer,
    Expr,
    bind,
    branch,
    build,
    horizontal,
    int64,
    lanes_of,
    load,
    loop,
    shape,
    splat,
    store,
    when,
    zeros,
)
from .append_kv import narrow
from .attention_blocks import MASKED, Heads, rotate
from .isa import Isa
from .microkernel import Tile, accumulate
from .vector_math import exp, half_to_float

FEW = 3
"""Fewer tokens than this of one sequence are computed one by one."""

Row = tuple[Expr, Expr]
"""A row of a tile: its token and its query head."""


def cached_attention(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out attention over the cache."""
    if int(parameters["head_dim"]) % 16:
        return None
    heads = Heads(Isa(target), parameters)

    def body(*buffers: Buffer) -> None:
        CachedAttention(heads, *buffers).emit()

    return build(function, body)


class CachedAttention:
    """The kernel's buffers, and the computation of one tile of rows."""

    def __init__(
        self,
        heads: Heads,
        qkv: Buffer,
        sequence: Buffer,
        position: Buffer,
        rope: Buffer,
        *rest: Buffer,
    ) -> None:
        *cache, out = rest
        self.form = CacheFormat.of(cache)
        self.keys, values, *scales = cache
        self.values = narrow(values, self.form)
        self.key_scales: Buffer | None = scales[0] if scales else None
        self.value_scales: Buffer | None = scales[1] if scales else None
        self.heads, self.qkv, self.rope, self.out = heads, qkv, rope, out
        self.sequence, self.position = sequence, position
        self.tokens, self.capacity = shape(qkv)[0], shape(values)[2]

    def emit(self) -> None:
        """Emit the kernel."""
        heads, rows = self.heads, self.heads.rows
        blocks = (self.tokens + (rows - 1)) // rows
        # Key heads outside: each thread gets early and late blocks of tokens, so equal work.
        with loop(heads.kv_heads * blocks, parallel=True) as task:
            kv, first = bind(task // blocks), bind(task % blocks * rows)
            count = bind(T.min(int64(rows), self.tokens - first))
            together = T.alloc_buffer((1,), "int32")
            store(together, T.cast(count >= FEW, "int32"), 0)
            with loop(count) as r:
                same = self.sequence[first + r] == self.sequence[first]
                store(together, together[0] * T.cast(same, "int32"), 0)

            def one_by_one() -> None:
                with loop(count) as r:
                    self.one_token(kv, bind(first + r))

            branch(together[0] == 1, lambda: self._block(kv, first, count), one_by_one)

    def one_token(self, kv: Expr, t: Expr) -> None:
        """Emit the attention of the heads that share a key head, for one token."""
        heads = self.heads
        for g in range(0, heads.group, heads.rows):
            members = range(g, min(g + heads.rows, heads.group))
            self._attend(kv, [(t, kv * heads.group + member) for member in members])

    def _block(self, kv: Expr, first: Expr, count: Expr) -> None:
        heads = self.heads
        # Rows past the tokens stand for the last one again and are not stored.
        tokens = [bind(first + T.min(int64(r), count - 1)) for r in range(heads.rows)]
        with loop(heads.group) as g:
            head = bind(kv * heads.group + g)
            self._attend(kv, [(t, head) for t in tokens], count)

    def _attend(self, kv: Expr, rows: Sequence[Row], count: Expr = None) -> None:
        """Emit the attention of rows of one sequence; of all, or of the first `count`."""
        heads, n, height = self.heads, self.heads.lanes, len(rows)
        query = T.alloc_buffer((height, heads.head_dim))
        scores = T.alloc_buffer((height, self.capacity))
        places = [bind(self.position[t]) for t, _ in rows]
        last: Expr = places[0]
        for place in places[1:]:
            last = bind(T.max(last, place))
        for r, (t, h) in enumerate(rows):
            self._rotate_query(query, r, t, h)
        s = bind(self.sequence[rows[0][0]])
        vectors = bind(int64(last) // n + 1)
        top = self._scores(query, scores, places, vectors, s, kv)
        total = _exponentials(scores, top, vectors, n)

        def write(r: int, d: int, vector: Expr) -> None:
            t, h = rows[r]

            def row() -> None:
                store(self.out, vector * splat(inverse[r], n), t, h * heads.head_dim + d)

            if count is None or r == 0:
                row()
            else:
                when(count > r, row)

        inverse = [bind(T.float32(1.0) / value) for value in total]
        for column, width in _wide_panels(heads, height):
            tile = self._mixed(scores, int64(last) + 1, s, kv, column, (height, width))
            for r in range(height):
                for v in range(width):
                    write(r, column + v * n, tile[r, v])

    def _rotate_query(self, query: Buffer, r: int, t: Expr, h: Expr) -> None:
        heads = self.heads
        factor = splat(heads.scale, heads.rotation_lanes)
        rotate(
            heads,
            self.rope,
            bind(int64(self.position[t])),
            lambda d, n: load(self.qkv, t, h * heads.head_dim + d, lanes=n),
            lambda d, value: store(query, value * factor, r, d),
        )

    def _scores(
        self,
        query: Buffer,
        scores: Buffer,
        places: Sequence[Expr],
        vectors: Expr,
        s: Expr,
        kv: Expr,
    ) -> list[Expr]:
        """Emit the scores of each row and return their maxima."""
        heads, n, height = self.heads, self.heads.lanes, len(places)
        top = Tile(height, 1, n)
        top.fill(lambda r, v: splat(MASKED, n))
        ramp = T.Shuffle([tirx.const(k, "int32") for k in range(n)], list(range(n)))

        def columns(first: Expr, width: int) -> None:
            tile = Tile(height, width, n)
            tile.fill()

            def words(w: Expr, v: int) -> Expr:
                return load(self.keys, s, kv, w, (first + v) * n, lanes=n)

            if self.form.per_word == 1:
                accumulate(tile, heads.head_dim, lambda r, d: query[r, d], words)
            else:
                self._accumulate_words(tile, query, words)
            if self.key_scales is not None:
                for v in range(width):
                    scale = bind(load(self.key_scales, s, kv, (first + v) * n, lanes=n))
                    for r in range(height):
                        tile[r, v] = tile[r, v] * scale
            for r, v in tile:
                lane = splat(T.cast((first + v) * n, "int32"), n) + ramp
                value = T.Select(lane <= splat(places[r], n), tile[r, v], splat(MASKED, n))
                tile[r, v] = value
                top[r, 0] = T.max(top[r, 0], tile[r, v])
            tile.store(lambda r, v: (scores, r, (first + v) * n))

        # Wide tiles first, to hide the latency of additions; narrower ones for what remains.
        widest = min(8, max(1, 2 * heads.rows // height))
        done: Expr = 0
        for width in sorted({widest, min(widest, 2), 1}, reverse=True):
            end = vectors // width
            with loop(end, begin=done // width) as chunk:
                columns(chunk * width, width)
            done = end * width
        return [horizontal(bind(top[r, 0]), T.max) for r in range(height)]

    def _accumulate_words(
        self, tile: Tile, query: Buffer, words: Callable[[Expr, int], Expr]
    ) -> None:
        """Emit the products of queries and keys of which a word holds several elements."""
        per, n = self.form.per_word, self.heads.lanes
        with loop(self.heads.head_dim // per) as w:
            rights = [bind(words(w, v)) for v in range(tile.width)]
            for c in range(per):
                keys = [bind(self._element(right, c)) for right in rights]
                for r in range(tile.height):
                    left = bind(splat(query[r, w * per + c], n))
                    for v in range(tile.width):
                        tile[r, v] = tile[r, v] + left * keys[v]

    def _element(self, words: Expr, place: int) -> Expr:
        """Return an element of words as float32 lanes, without its scale."""
        n = lanes_of(words)
        if self.form.per_word == 4:
            return T.cast(code(words, place), f"float32x{n}")
        if place:
            words = words >> splat(tirx.const(16, "int32"), n)
        return self._half(T.cast(words, f"int16x{n}"))

    def _half(self, bits: Expr) -> Expr:
        """Return 16-bit lanes of the cache as float32."""
        half = T.reinterpret(f"float16x{lanes_of(bits)}", bits)
        return half_to_float(half, self.heads.native_half)

    def _value(self, stored: Expr) -> Expr:
        """Return lanes of the values' view as float32, without their scale."""
        if self.form.per_word == 1:
            return stored
        if self.form.per_word == 2:
            return self._half(stored)
        return T.cast(stored, f"float32x{lanes_of(stored)}")

    def _mixed(
        self,
        weights: Buffer,
        end: Expr,
        s: Expr,
        kv: Expr,
        column: int,
        size: tuple[int, int],
    ) -> Tile:
        """Emit ``sum_j weights[r, j] values[j, column ..]`` for each row."""
        n, (height, width) = self.heads.lanes, size
        # As many sums in flight as hide the latency of an addition.
        unroll = max(1, self.heads.rows // (height * width))
        tiles = [Tile(height, width, n) for _ in range(unroll)]
        for tile in tiles:
            tile.fill()

        def add(tile: Tile, j: Expr) -> None:
            rights = [
                bind(self._value(load(self.values, s, kv, j, column + v * n, lanes=n)))
                for v in range(width)
            ]
            if self.value_scales is not None:
                scale = bind(splat(self.value_scales[s, kv, j], n))
                rights = [bind(right * scale) for right in rights]
            for r, v in tile:
                tile[r, v] = tile[r, v] + splat(weights[r, j], n) * rights[v]

        with loop(end // unroll) as step:
            for u, tile in enumerate(tiles):
                add(tile, step * unroll + u)
        if unroll > 1:
            with loop(end, begin=end // unroll * unroll) as j:
                add(tiles[0], j)
            for r, v in tiles[0]:
                for tile in tiles[1:]:
                    tiles[0][r, v] = tiles[0][r, v] + tile[r, v]
        return tiles[0]


def _wide_panels(heads: Heads, height: int) -> list[tuple[int, int]]:
    """Return first column and vectors of panels of a head, wider where the rows are few."""
    vectors, width = heads.head_dim // heads.lanes, max(1, 2 * heads.rows // height)
    return [(v * heads.lanes, min(width, vectors - v)) for v in range(0, vectors, width)]


def _exponentials(scores: Buffer, top: Sequence[Expr], vectors: Expr, n: int) -> list[Expr]:
    """Emit the exponentials of the scores less their maxima; returns the sum of each row."""
    total = Tile(len(top), 1, n)
    total.fill()
    with loop(vectors) as vector:
        for r, largest in enumerate(top):
            score = bind(load(scores, r, vector * n, lanes=n))
            weight = exp(score - splat(largest, n))
            weight = bind(T.Select(score > splat(MASKED, n), weight, zeros("float32", n)))
            total[r, 0] = total[r, 0] + weight
            store(scores, weight, r, vector * n)
    return [horizontal(bind(total[r, 0]), lambda a, b: a + b) for r in range(len(top))]
