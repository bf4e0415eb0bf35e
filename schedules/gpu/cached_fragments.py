"""Attention of a prompt over the cache on matrix units whose fragments are known.

A work-group has a block of tokens of one sequence, 16 a subgroup, past which the keys and values
stream. Few work-groups are all that a prompt has, so several subgroups share the same tokens: each
has its part of a block's keys and a softmax of its own, and they meet at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from operator import add

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..tir import Expr, bind, when
from .attention_fragment_rows import SplitRows
from .attention_fragment_tile import AT_ONCE, Tile, mix, pairs_of, put_row
from .attention_heads import LOG2_E, turned
from .attention_rows import LARGEST
from .cached_fragment_parts import meet
from .cached_fragment_rows import KeyBlock, ValueBlock
from .cached_members import Members
from .cached_token import Cache
from .fragments import DEPTH, EIGHT, ROWS, Lane, RowSums, clamped
from .kernel import barrier, ceil_div, launch, loop
from .ternary_tile import WARP
from .vectors import held, lane

SHAPES = ((4, 2), (2, 2), (4, 1), (2, 1))
"""Times 16 tokens of a work-group, and the subgroups that share them."""
WIDEST = 128
"""Elements of a head up to which a subgroup's registers hold 16 queries, and their sums."""
BLOCKS = (64, 32, 16)
"""Keys of a block, the first that fits into shared memory."""


@dataclass(frozen=True)
class Layout:
    """The extents of a work-group.

    Attributes
    ----------
    tiles, parts : int
        Times 16 tokens, and the subgroups that share them.
    keys : int
        Keys of a block.
    """

    tiles: int
    parts: int
    keys: int

    @property
    def queries(self) -> int:
        """Tokens of a work-group."""
        return ROWS * self.tiles

    @property
    def threads(self) -> int:
        """Threads of a work-group."""
        return WARP * self.tiles * self.parts

    @property
    def share(self) -> int:
        """Keys of a block that a subgroup has."""
        return self.keys // self.parts

    @staticmethod
    def choose(cache: Cache, target: Target) -> Layout | None:
        """Return the one for a target; None without fragments, or for heads they do not divide."""
        heads = cache.heads
        if "fragments" not in target.features or heads.head_dim % DEPTH or heads.head_dim > WIDEST:
            return None
        tiles, parts = choose("tokens of a prompt", SHAPES, SHAPES[0])
        fitting = [
            keys
            for keys in BLOCKS
            if keys >= ROWS * parts and _bytes(cache, keys) <= heads.shared_bytes
        ]
        return Layout(tiles, parts, choose("keys", fitting, fitting[0])) if fitting else None


def _bytes(cache: Cache, keys: int) -> int:
    """Return the shared memory of a block of keys and values."""
    head_dim, exact = cache.heads.head_dim, cache.stored.is_half
    sizes = ((head_dim, keys), (keys, head_dim))
    return sum(SplitRows.bytes(rows, columns // EIGHT, exact) for rows, columns in sizes)


def launch_fragments(cache: Cache, layout: Layout) -> None:
    """Launch the blocks of tokens that are of one sequence."""
    blocks = ceil_div(cache.tokens, layout.queries)
    with launch([cache.heads.heads, blocks], [layout.threads]) as (h, block, thread):
        # The last tokens of a prompt see the most keys, so they begin first.
        first = bind((blocks - 1 - block) * layout.queries)
        _Block(cache, layout, thread, first).attend(h)


class _Block:
    """A block of tokens of one sequence. Make it at the top of a launch: it allocates."""

    def __init__(self, cache: Cache, layout: Layout, thread: Expr, first: Expr) -> None:
        self.heads, self.cache, self.layout = cache.heads, cache, layout
        self.lane = Lane()
        blocks = cache, self.lane, thread, layout.threads, layout.keys
        self.key, self.value = KeyBlock(*blocks), ValueBlock(*blocks)
        self.tile = Tile(self.heads, self.lane)
        self.number = bind(self.lane.subgroup % layout.tiles)
        self.part = bind(self.lane.subgroup // layout.tiles)
        self.first, self.own = first, bind(first + ROWS * self.number)
        self.rows = [bind(self.own + self.lane.row + 8 * i) for i in range(2)]

    def attend(self, h: Expr) -> None:
        """Emit the attention of head h of the tokens, if they are of one sequence."""
        cache, layout = self.cache, self.layout
        s, kv = bind(cache.sequence[self.first]), bind(h // self.heads.group)
        every = Members(cache, self.first, layout.queries, self.lane.index)
        base, latest, same = bind(cache.first_value(s, kv)), every.latest(), every.same()

        def fetch(block: Expr) -> None:
            self.key.fetch(s, kv, block, latest)
            self.value.fetch(base, block, latest)

        # The cache is under way before the queries are known.
        fetch(0)
        begin = bind(T.min(self.own, cache.tokens - 1))
        members = Members(cache, begin, ROWS, self.lane.index)
        self.earliest, furthest = members.earliest(), members.latest()
        tokens = [bind(T.min(row, cache.tokens - 1)) for row in self.rows]
        self.places = [bind(cache.position[token]) for token in tokens]
        self._rotate_queries(h, tokens)
        self.tile.begin()
        turns = held(T.if_then_else(same != 0, latest // layout.keys + 1, 0))
        with loop(turns) as index:
            block = bind(index * layout.keys)
            self.key.put()
            self.value.put()
            barrier()
            when(index + 1 < turns, partial(fetch, block + layout.keys))
            own = bind(block + self.part * layout.share)
            # A subgroup whose tokens all precede its keys has nothing to do.
            when(own <= furthest, partial(self._attend, own))
            barrier()
        place = bind(self.number * WARP + self.lane.index)
        meet(self.tile, layout.parts, self.part, self.key.rows, (place, layout.tiles * WARP))
        inverse, column = self.tile.softmax.inverse(), h * self.heads.head_dim + self.lane.column
        for i, row in enumerate(self.rows):
            exists = tirx.all(self.part == 0, same != 0, row < cache.tokens)
            factor = held(inverse[i] * T.float32(1.0 / self.value.factor))
            out = pairs_of(cache.out)
            when(exists, partial(put_row, out, row, column, self.tile.mixture, i, factor))

    def _rotate_queries(self, h: Expr, tokens: list[Expr]) -> None:
        """Emit the rotated queries as factors, in units of log 2; a thread has what it needs."""
        heads, cache, tile = self.heads, self.cache, self.tile
        qkv, rope, queries = pairs_of(cache.qkv), pairs_of(cache.rope), RowSums(heads.head_dim)
        half, factor = queries.count // 2, T.float32(heads.scale * LOG2_E)
        own = bind(self.lane.column // 2)
        column = bind(h * (heads.head_dim // 2) + own)
        for j in range(half):
            found: list[list[Expr]] = [[], []]
            for token, place in zip(tokens, self.places, strict=True):
                a, b, cosine, sine = (
                    bind(matrix[row, begin + 4 * (j + n)])
                    for matrix, row, begin in ((qkv, token, column), (rope, place, own))
                    for n in (0, half)
                )
                for values, vector in zip(found, turned(a, b, cosine, sine), strict=True):
                    values += [held(clamped(lane(vector, c) * factor, LARGEST)) for c in range(2)]
            queries.put(j, found[0])
            queries.put(j + half, found[1])
        for k in range(heads.head_dim // DEPTH):
            high = queries.left(k)
            T.buffer_store(tile.query[0], high, [k])
            T.buffer_store(tile.query[1], queries.left_rest(k, high), [k])

    def _attend(self, own: Expr) -> None:
        """Emit the attention to the subgroup's keys of a block, which begin with key `own`."""
        tile, layout = self.tile, self.layout
        scores = self._scores()
        hide = partial(tile.hide, scores, own, lambda i, key: key <= self.places[i])
        when(own + layout.share > self.earliest + 1, hide)
        tile.mixture.scale(*tile.softmax.update(scores))
        mix([tile.mixture], [scores], self.value.rows, self.part * layout.share)

    def _scores(self) -> RowSums:
        """Emit the products of the queries and the subgroup's keys.

        Each of the kinds of products has sums of its own: a subgroup has few keys, and a product
        would wait for the one before.
        """
        share, rows, query = self.layout.share, self.key.rows, self.tile.query
        sums = [RowSums(share) for _ in range(2 if rows.exact else 3)]
        for each in sums:
            each.clear()
        begin = bind(self.part * (share // EIGHT))
        for k in range(self.heads.head_dim // DEPTH):
            for first in range(0, share // 16, AT_ONCE):
                pairs = range(first, min(first + AT_ONCE, share // 16))
                whole, rest = rows.turned_parts(16 * k, [begin + 2 * pair for pair in pairs])
                kinds = [(1, whole), *([(0, rest)] if rest else []), (0, whole)]
                for own, (part, rights) in zip(sums, kinds, strict=True):
                    for pair, right in zip(pairs, rights, strict=True):
                        own.add(pair, query[part][k], right)
        total = sums[-1]
        for j in range(total.count):
            every = zip(*(own.get(j) for own in sums), strict=True)
            # The small ones first.
            total.put(j, [reduce(add, values) for values in every])
        return total
