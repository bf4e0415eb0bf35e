"""What attention and its adjoint share: blocks of queries whose lanes are the queries.

The scores of a block are kept transposed, ``(keys, queries)``: a score is a scalar of the rotated
keys by a vector of queries, its softmax runs down the lanes without a horizontal step, and in the
products with values, keys and outer adjoints a score is a scalar again. So all products are the
outer products of :class:`Tile` and no key is ever transposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..decisions import choose
from ..tir import Buffer, Expr, bind, int64, load, loop, splat, store, when, zeros
from .isa import Isa
from .microkernel import Tile, accumulate
from .vector_math import exp

MASKED = -1e30
"""Score of a key that a query does not see."""


class Heads:
    """The static shape of attention and the sizes of its blocks.

    Attributes
    ----------
    block : int
        Queries of a block: two vectors.
    rows : int
        Height of a register tile; divides `block`.
    native_half : bool
        Whether the processor widens 16-bit floats.
    context, padded : int
        C, and C rounded up to whole blocks; 0 over a cache.
    """

    def __init__(self, isa: Isa, parameters: dict[str, Any], context: int = 0) -> None:
        self.heads, self.kv_heads = int(parameters["heads"]), int(parameters["kv_heads"])
        self.head_dim = int(parameters["head_dim"])
        self.group = self.heads // self.kv_heads
        self.scale = 1.0 / math.sqrt(self.head_dim)
        self.lanes, self.block = isa.lanes, 2 * isa.lanes
        self.native_half = isa.native_half
        # Two vectors wide: 16 accumulators, or 8 where there are 16 registers only.
        self.rows = choose("rows", (2, 4, 8), 8 if isa.tile[1] == 4 else 4)
        self.context, self.padded = context, -(-context // self.block) * self.block

    @property
    def rotation_lanes(self) -> int:
        """Lanes of a vector that divide half a head."""
        return math.gcd(self.head_dim // 2, self.lanes)

    def panels(self, body: Callable[[Expr, int], None]) -> None:
        """Emit ``body(first column, vectors)`` for panels of a head, two vectors wide or so."""
        wide = choose("panel", (1, 2, 4), 2)
        whole, rest = divmod(self.head_dim // self.lanes, wide)
        with loop(whole) as panel:
            body(bind(panel * (wide * self.lanes)), wide)
        if rest:
            body(whole * wide * self.lanes, rest)


def rotate(
    heads: Heads,
    rope: Buffer,
    position: Expr,
    source: Callable[[int, int], Expr],
    target: Callable[[int, Expr], None],
    back: bool = False,
) -> None:
    """Emit the rotation of one head to a position, or `back` from it.

    ``source(first, lanes)`` returns elements of the head, ``target(first, value)`` takes them.
    """
    half, n = heads.head_dim // 2, heads.rotation_lanes
    for d in range(0, half, n):
        a, b = bind(source(d, n)), bind(source(half + d, n))
        cosine = bind(load(rope, position, d, lanes=n))
        sine = bind(load(rope, position, half + d, lanes=n))
        target(d, a * cosine + b * sine if back else a * cosine - b * sine)
        target(half + d, b * cosine - a * sine if back else b * cosine + a * sine)


def copy_rows(
    heads: Heads, source: Callable[[Expr, int, int], Expr], target: Buffer, begin: Expr, end: Expr
) -> None:
    """Emit ``target[j] = source(j)`` for rows of a head, ``source(row, first, lanes)``."""
    with loop(end, begin=begin) as j:
        for d in range(0, heads.head_dim, heads.lanes):
            store(target, source(j, d, heads.lanes), j, d)


def clear_rows(heads: Heads, target: Buffer, begin: Expr, end: Expr) -> None:
    """Emit zeros into rows of a head."""
    copy_rows(heads, lambda j, d, n: zeros("float32", n), target, begin, end)


def transpose(heads: Heads, source: Buffer, target: Buffer, factor: float = 1.0) -> None:
    """Emit ``target[d, i] = factor * source[i, d]`` for a block of queries, through registers."""
    n = heads.lanes
    low = [k // 2 + n * (k % 2) for k in range(n)]
    high = [k + n // 2 for k in low]
    with loop(heads.head_dim // n) as c:
        for first in range(0, heads.block, n):
            vectors = [bind(load(source, first + i, c * n, lanes=n)) for i in range(n)]
            # Interleaving the halves log2(n) times is the transposition.
            for _ in range(n.bit_length() - 1):
                vectors = [
                    bind(tirx.Shuffle([vectors[i], vectors[i + n // 2]], order))
                    for i in range(n // 2)
                    for order in (low, high)
                ]
            for d, vector in enumerate(vectors):
                store(target, vector * splat(factor, n), c * n + d, first)


class QueryBlock:
    """The queries ``first .. first + block - 1`` of a row: what they see, and their scores.

    Lanes past the context stand for the last token again; they are never stored.
    """

    def __init__(self, heads: Heads) -> None:
        self.heads = heads
        d, block = heads.head_dim, heads.block
        self.query = T.alloc_buffer((block, d))
        self.transposed = T.alloc_buffer((d, block))
        self.scores = T.alloc_buffer((heads.padded, block))
        self.start = T.alloc_buffer((block,), "int32")
        self.place = T.alloc_buffer((block,), "int32")
        self.lowest = T.alloc_buffer((1,), "int32")
        self.first: Expr = 0

    def token(self, r: Expr) -> Expr:
        """Return the token of lane r."""
        index = self.first + r
        return index if self.heads.context % self.heads.block == 0 else self._clamped(index)

    def _clamped(self, index: Expr) -> Expr:
        return T.min(int64(index), int64(self.heads.context - 1))

    def open(self, starts: Buffer, b: Expr, first: Expr) -> None:
        """Emit the bounds of what each query of the block at `first` sees."""
        self.first = first
        store(self.lowest, T.cast(first, "int32"), 0)
        with loop(self.heads.block) as r:
            token, start = bind(self.token(r)), bind(starts[b, self.token(r)])
            store(self.start, start, r)
            store(self.place, T.cast(token, "int32") - start, r)
            store(self.lowest, T.min(self.lowest[0], start), 0)
        rows = self.heads.rows
        self.begin = bind(int64(self.lowest[0]) // rows * rows)
        self.end = bind(first + self.heads.block)

    def rotate_queries(self, qkv: Buffer, rope: Buffer, b: Expr, h: Expr) -> None:
        """Emit the rotation of head h of the block and its scaled transpose."""
        heads = self.heads
        with loop(heads.block) as r:
            row, column = b * heads.context + self.token(r), h * heads.head_dim
            rotate(
                heads,
                rope,
                bind(int64(self.place[r])),
                lambda d, n: load(qkv, row, column + d, lanes=n),
                lambda d, value: store(self.query, value, r, d),
            )
        transpose(heads, self.query, self.transposed, heads.scale)

    def key_tiles(self, body: Callable[[Expr], None]) -> None:
        """Emit ``body(first key)`` for each tile of the keys that the block may see."""
        rows = self.heads.rows
        with loop(self.end // rows, begin=self.begin // rows) as tile:
            body(tile * rows)

    def softmax(self, key: Buffer) -> Tile:
        """Emit the exponentials of the scores less their maxima; returns their sums."""
        heads, n = self.heads, self.heads.lanes
        top, total = Tile(1, 2, n), Tile(1, 2, n)
        top.fill(lambda i, v: splat(MASKED, n))
        total.fill()

        def scores(j: Expr) -> None:
            tile = products(heads, key, self.transposed, j)
            starts, places = (
                [bind(load(buffer, v * n, lanes=n)) for v in range(2)]
                for buffer in (self.start, self.place)
            )
            for i, v in tile:
                # Unsigned, a key before the start lies past every place.
                past = T.cast(splat(T.cast(j + i, "int32"), n) - starts[v], f"uint32x{n}")
                seen = past <= T.cast(places[v], f"uint32x{n}")
                tile[i, v] = T.Select(seen, tile[i, v], splat(MASKED, n))
                top[0, v] = T.max(top[0, v], tile[i, v])
            tile.store(lambda i, v: (self.scores, j + i, v * n))

        self.key_tiles(scores)
        with loop(self.end, begin=self.begin) as j:
            for v in range(2):
                score = bind(load(self.scores, j, v * n, lanes=n))
                weight = T.Select(
                    score > splat(MASKED, n), exp(score - top[0, v]), zeros("float32", n)
                )
                weight = bind(weight)
                total[0, v] = total[0, v] + weight
                store(self.scores, weight, j, v * n)
        return total

    def mix(
        self,
        weights: Buffer,
        source: Callable[[Expr, Expr], Expr],
        target: Callable[[Expr, Expr, Expr], None],
    ) -> None:
        """Emit ``sum_j weights[j, i] source(j)`` for each query i of the block.

        ``source(j, d)`` returns a vector of token j; ``target(r, d, vector)`` takes one of lane r.
        """
        heads, n = self.heads, self.heads.lanes
        end = bind(self._end_of_tokens())
        with loop(heads.block // heads.rows) as t:

            def panel(column: Expr, width: int) -> None:
                tile = Tile(heads.rows, width, n)
                tile.fill()
                accumulate(
                    tile,
                    end,
                    lambda i, j: weights[j, t * heads.rows + i],
                    lambda j, v: source(j, column + v * n),
                    begin=self.begin,
                )
                for i, v in tile:
                    target(t * heads.rows + i, column + v * n, tile[i, v])

            heads.panels(panel)

    def _end_of_tokens(self) -> Expr:
        whole = self.heads.context % self.heads.block == 0
        return self.end if whole else T.min(self.end, int64(self.heads.context))

    def when_token(self, r: Expr, body: Callable[[], None]) -> None:
        """Emit a body where lane r is a token of the row, not a repetition of the last one."""
        if self.heads.context % self.heads.block == 0:
            body()
        else:
            when(self.first + r < self.heads.context, body)


def products(heads: Heads, left: Buffer, transposed: Buffer, row: Expr) -> Tile:
    """Emit ``left[row + i] . transposed[:, lane]`` for a tile of rows and all queries."""
    n = heads.lanes
    tile = Tile(heads.rows, 2, n)
    tile.fill()
    accumulate(
        tile,
        heads.head_dim,
        lambda i, d: left[row + i, d],
        lambda d, v: load(transposed, d, v * n, lanes=n),
    )
    return tile
