"""Attention over rows of packed documents on matrix units whose fragments are known.

As `attention.py`, with scores, weights and sums in the registers of the subgroups: each has 16
queries, and all those of a work-group stream past the same blocks of keys and values. What comes
behind is quantised, so 16 bits would not do: each factor is the sum of two 16-bit floats, of 22
bits together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..tir import Buffer, Expr, bind, shape, when
from .attention_fragment_rows import Split, SplitRows
from .attention_fragment_tile import AT_ONCE, VALUES, Tile, add_products, mix, pairs_of, put_row
from .attention_heads import LOG2_E, Heads
from .attention_rows import PackedRows, is_static, key_blocks
from .fragments import DEPTH, EIGHT, ROWS, Lane, RowSums
from .kernel import Gpu, barrier, build, ceil_div, launch, loop
from .ternary_tile import WARP, cores
from .vectors import held

SHAPES = ((4, 2), (4, 1), (2, 1), (1, 1))
"""Subgroups of a work-group, and how many times 16 queries each has. The more queries, the fewer
times keys and values are read, turned and split."""
WIDEST = 64
"""Elements of a head up to which a subgroup's registers hold more than 16 queries."""
BLOCKS = (64, 32, 16)
"""Keys of a block, the first that fits into shared memory."""


@dataclass(frozen=True)
class Layout:
    """The extents of a work-group.

    Attributes
    ----------
    subgroups, tiles : int
        Its subgroups, and how many times 16 queries each has.
    keys : int
        Keys of a block.
    """

    subgroups: int
    tiles: int
    keys: int

    @property
    def queries(self) -> int:
        """Queries of a work-group."""
        return ROWS * self.subgroups * self.tiles

    @staticmethod
    def choose(gpu: Gpu, heads: Heads, tasks: int, context: int) -> Layout | None:
        """Return the largest that leaves work for nearly every core; None where no block fits."""
        keys = next((n for n in BLOCKS if _bytes(heads, n) <= heads.shared_bytes), None)
        if keys is None:
            return None
        shapes = [shape for shape in SHAPES if shape[1] == 1 or heads.head_dim <= WIDEST]

        def is_enough(shape: tuple[int, int]) -> bool:
            groups = tasks * ceil_div(context, Layout(*shape, keys).queries)
            return 4 * groups >= 3 * cores(gpu)

        usual = next(filter(is_enough, shapes), (1, 1))
        fitting = [n for n in BLOCKS if n <= keys]
        return Layout(*choose("queries", shapes, usual), choose("keys", fitting, keys))


def fragments(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out attention; None without fragments, or for heads that they do not divide."""
    if not is_static(function.params[1]) or "fragments" not in target.features:
        return None
    gpu, heads = Gpu(target), Heads.of(parameters, target)
    batch, context = shape(function.params[1])
    layout = Layout.choose(gpu, heads, batch * heads.heads, context)
    if heads.head_dim % DEPTH or layout is None:
        return None

    def body(qkv: Buffer, starts: Buffer, rope: Buffer, out: Buffer) -> None:
        packed = PackedRows(heads, qkv, starts, rope)
        blocks = ceil_div(context, layout.queries)
        with launch([batch * heads.heads, blocks], [layout.subgroups * WARP]) as (
            task,
            block,
            thread,
        ):
            b, h = bind(task // heads.heads), bind(task % heads.heads)
            # The last queries see the most keys, so they begin first.
            first = bind((blocks - 1 - block) * layout.queries)
            _Block(packed, thread, layout, (b, h, first)).emit(out)

    return build(function, body)


def _bytes(heads: Heads, keys: int) -> int:
    """Return the shared memory of a block of keys and values."""
    return 2 * SplitRows.bytes(keys, heads.head_dim // EIGHT)


class _Block:
    """A work-group's queries; make it at the top of a launch.

    Parameters
    ----------
    packed : PackedRows
        The rows.
    thread : PrimExpr
        The thread's index.
    layout : Layout
        The extents.
    place : tuple of PrimExpr
        The row of the batch, the head and the first query.
    """

    def __init__(
        self, packed: PackedRows, thread: Expr, layout: Layout, place: tuple[Expr, Expr, Expr]
    ) -> None:
        self.packed, self.heads, (self.b, self.h, self.first) = packed, packed.heads, place
        self.lane, self.layout = Lane(), layout
        heads, threads = self.heads, layout.subgroups * WARP
        self.key, self.value = (
            Split(heads, self.lane, thread, threads, layout.keys) for _ in range(2)
        )
        own = bind(self.lane.subgroup * (ROWS * layout.tiles))
        self.tiles = [
            _Tile(packed, self.b, self.first, own + ROWS * n, self.lane)
            for n in range(layout.tiles)
        ]

    def emit(self, out: Buffer) -> None:
        """Emit the block."""
        heads, packed, layout = self.heads, self.packed, self.layout
        self._load_queries()
        for tile in self.tiles:
            tile.begin()
        kv = bind(self.h // heads.group)
        begin, end = key_blocks(packed, self.b, self.first, layout.queries, layout.keys)
        last = packed.context - 1
        latest = bind(packed.starts[self.b, T.min(self.first + (layout.queries - 1), last)])
        furthest = bind(self.first + self.tiles[-1].own + (ROWS - 1))
        with loop(end, begin) as index:
            block = bind(index * layout.keys)
            self.key.stage(packed.key(self.b, kv), block, last)
            self.value.stage(packed.value(self.b, kv), block, last, VALUES)
            barrier()
            # A subgroup whose queries all precede the keys has nothing to do.
            when(block <= furthest, partial(self._attend, block, latest))
            barrier()
        for tile in self.tiles:
            tile.store(pairs_of(out), self.h)

    def _attend(self, block: Expr, latest: Expr) -> None:
        """Emit the attention to a block of keys; `latest` is where the last document begins."""
        scores = self._scores()
        hidden = T.Or(block + self.layout.keys > self.first + 1, block < latest)

        def hide() -> None:
            for tile, own in zip(self.tiles, scores, strict=True):
                tile.hide(own, block, tile.sees)

        when(hidden, hide)
        for tile, own in zip(self.tiles, scores, strict=True):
            tile.mixture.scale(*tile.softmax.update(own))
        mix([tile.mixture for tile in self.tiles], scores, self.value.rows)

    def _load_queries(self) -> None:
        """Emit the queries' way through the keys' memory into registers, in units of log 2."""
        heads, layout = self.heads, self.layout
        source, last = self.packed.query(self.b, self.h), self.packed.context - 1
        count = min(layout.keys, layout.queries)
        for part in range(0, layout.queries, count):
            self.key.stage(source, self.first + part, last, heads.scale * LOG2_E)
            barrier()
            for tile in self.tiles:
                inside = tirx.all(tile.own >= part, tile.own < part + count)
                load = partial(tile.load, self.key, part)
                load() if layout.queries == count else when(inside, load)
            barrier()

    def _scores(self) -> list[RowSums]:
        """Emit the products of the queries and a block of keys."""
        keys, rows = self.layout.keys, self.key.rows
        scores = [RowSums(keys) for _ in self.tiles]
        for sums in scores:
            sums.clear()
        for k in range(self.heads.head_dim // DEPTH):
            for first in range(0, keys // 16, AT_ONCE):
                pairs = range(first, min(first + AT_ONCE, keys // 16))
                whole = [rows.right(16 * pair, 2 * k) for pair in pairs]
                rest = [rows.right(16 * pair, 2 * k + self.key.vectors) for pair in pairs]
                lefts = [[tile.query[part][k] for part in range(2)] for tile in self.tiles]
                add_products(scores, pairs, lefts, whole, rest)
        return scores


class _Tile(Tile):
    """Sixteen queries of a subgroup.

    Attributes
    ----------
    own : PrimExpr
        The first of them, counted from the work-group's.
    """

    def __init__(self, packed: PackedRows, b: Expr, first: Expr, own: Expr, place: Lane) -> None:
        super().__init__(packed.heads, place)
        self.packed, self.b, self.own = packed, b, bind(own)
        self.queries = [bind(first + self.own + place.row + 8 * i) for i in range(2)]
        self.seen = [bind(T.min(query, packed.context - 1)) for query in self.queries]
        self.starts = [bind(packed.starts[b, query]) for query in self.seen]

    def load(self, staged: Split, first: int) -> None:
        """Emit the reading of the queries, of which shared memory has those from `first` on."""
        for part in range(2):
            for k in range(self.heads.head_dim // DEPTH):
                vector = 2 * k + part * staged.vectors
                left = staged.rows.left(self.own - first, vector)
                T.buffer_store(self.query[part], left, [k])

    def sees(self, i: int, key: Expr) -> Expr:
        """Return whether the thread's i-th query sees a key."""
        return T.And(key <= self.seen[i], key >= self.starts[i])

    def store(self, out: Buffer, h: Expr) -> None:
        """Emit the store of the result."""
        packed, inverse = self.packed, self.softmax.inverse()
        column = h * self.heads.head_dim + self.lane.column
        for i, query in enumerate(self.queries):
            row = self.b * packed.context + query
            factor = held(inverse[i] * T.float32(1.0 / VALUES))
            put = partial(put_row, out, row, column, self.mixture, i, factor)
            when(query < packed.context, put)
