"""The head's two products on Hopper's warpgroups: the table is their left factor, tokens the right.

The logits leave their weights where the gradient's product copies them from, line by line; between
both the launch that has the strips' factors multiplies the weights by them, in place.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape, static, when
from . import warpgroup_tile
from .half_block import EIGHT
from .halves import Halves
from .head_gradient import Gradient
from .head_panels import scaled
from .head_products import Factor
from .head_strip import STRIP, Left
from .head_tokens import Order
from .head_warpgroup_strip import WarpgroupStrip
from .head_warpgroup_table import DEPTH, TableColumns, TableRows, input_columns
from .kernel import Gpu, ceil_div, launch, registers, strided
from .share import Share
from .vectors import LANES, four, fours, held, lane
from .warpgroup import line_place
from .warpgroup_block import WarpgroupBlock
from .warpgroup_tile import COLUMNS, TOKEN_CYCLES, WarpgroupTile

TOKENS = max(TOKEN_CYCLES)
"""Tokens of the largest tile."""
PARTS_BYTES = 16 << 20
"""Largest memory for the sums of parts of the gradient's depth."""
TOGETHER = 16
"""Tokens of a thread whose sums are added to what was before at once: registers for that many."""
# A work-group's rows of the vocabulary are a strip.
assert COLUMNS == STRIP


class WarpgroupProducts:
    """Both on warpgroups, see `Products` of `head_products.py`.

    Parameters
    ----------
    table : Buffer
        ``(V, N)`` int8, with scales, for which they are :meth:`fit`.
    order : Order
        The tokens.
    """

    def __init__(self, table: Buffer, order: Order) -> None:
        self.table, self.order, self.columns = table, order, shape(table)[1]
        self.rows = ceil_div(order.extent, TOKENS) * TOKENS
        self.halves = Halves(order.extent, self.rows, self.columns, self._input, line_place)
        self.parts = 1

    @staticmethod
    def fit(gpu: Gpu, table: Buffer) -> bool:
        """Tell whether they are there, and a table's row is of whole steps."""
        columns = static(table.shape[1])
        whole = columns is not None and columns % DEPTH == 0
        return gpu.warpgroups and whole and str(table.dtype) == "int8"

    def _input(self, row: Expr, vector: Expr) -> Expr:
        """Return four columns of a token's input, as they meet the table's."""
        h = self.order.h
        rows, columns = shape(h)
        pairs = T.decl_buffer([rows, columns // 2], "float32x2", data=h.data)
        source = bind(self.order.order[row])
        found = [bind(pairs[source, pair]) for pair in input_columns(vector)]
        return four([lane(pair, i) for pair in found for i in range(2)])

    def use(self, left: Left) -> None:
        """Take the buffers, and choose the tiles."""
        self.left, self.chunks = left, left.chunks
        tokens, size = self.order.extent, self.chunks.size
        self.wide = self._tile(tokens, size, 2 * self.columns, 1, "logits")
        if left.weights is not None:
            most = max(PARTS_BYTES // (4 * tokens * self.columns), 1)
            self.deep = self._tile(tokens, self.columns, 2 * size, most, "gradient")
            self.parts = self.deep.parts

    @staticmethod
    def _tile(tokens: int, outputs: int, depth: int, parts: int, name: str) -> WarpgroupTile:
        """Return a tile of one warpgroup, which has all of a token's strip."""
        tile = warpgroup_tile.choose(tokens, outputs, depth, parts, name, most_teams=1)
        assert tile is not None
        return tile

    def logits(self, first: Expr, index: Expr) -> None:
        """Emit the logits of a chunk, and what is left of each strip."""
        tile, strips = self.wide, self.chunks.strips
        down = ceil_div(self.order.extent, tile.rows)
        with launch([down, strips], [tile.threads]) as (down, strip, thread):
            row, begin = bind(down * tile.rows), bind(first + strip * STRIP)

            def emit() -> None:
                words = fours(self.halves.words)
                block = WarpgroupBlock(tile, words, "float32", self.columns // DEPTH)
                table = TableRows(self.table, self.chunks, begin, thread)
                place = row, begin, bind(index * strips + strip), strip
                left = partial(WarpgroupStrip, self.left, block, thread, *place)
                block.emit(thread, row, table, lambda share: left(share).emit())

            # Tokens without loss come last: whole tiles of them are left out.
            when(row < self.order.count[0], emit)

    def level(self, token: Expr, threads: int, thread: Expr, factor: Factor) -> None:
        """Emit the product of a token's weights and the factors, in place."""
        weights = self.left.weights
        assert weights is not None
        rows, words = shape(weights)
        vectors = words // LANES
        memory = T.decl_buffer([rows * vectors], f"int32x{LANES}", data=weights.data)

        def weigh(vector: Expr) -> None:
            place = bind(line_place(token, vector * LANES, words) // LANES)
            value = scaled(bind(memory[place]), held(factor(vector // (STRIP // EIGHT))))
            T.buffer_store(memory, value, [place])

        when(token < self.order.count[0], lambda: strided(vectors, threads, thread, weigh))

    def gradient(self, first: Expr, gradient: Gradient) -> None:
        """Emit the product of a chunk's weights and its rows of the table."""
        tile = self.deep
        grid = [ceil_div(self.order.extent, tile.rows), ceil_div(self.columns, COLUMNS), tile.parts]
        with launch(grid, [tile.threads]) as (down, across, part, thread):
            row, column = bind(down * tile.rows), bind(across * COLUMNS)

            def emit() -> None:
                words = fours(self.left.weights)
                block = WarpgroupBlock(tile, words, "float32", self.chunks.size // DEPTH)
                table = TableColumns(self.table, self.chunks, first, column, thread)
                finish = partial(self._finish, gradient, column, part)
                block.emit(thread, row, table, finish, bind(part))

            when(row < self.order.count[0], emit)

    def _finish(self, gradient: Gradient, column: Expr, part: Expr, share: Share) -> None:
        """Emit what becomes of the sums, some tokens at a time: what they read comes before what
        they store, so that reads run side by side."""
        vectors, count = self.columns // LANES, bind(self.order.count[0])
        vector, inside = bind(column // LANES + share.vector), True
        place = vector
        if self.columns % COLUMNS:
            inside, place = vector < vectors, bind(tirx.min(vector, vectors - 1))

        def emit(side: Gradient) -> None:
            out = registers([len(share.rows)], f"float32x{LANES}")
            every = list(enumerate(zip(share.rows, share.sums(), strict=True)))
            for several in (every[i : i + TOGETHER] for i in range(0, len(every), TOGETHER)):
                for i, (t, sums) in several:
                    token = bind(tirx.min(t, count - 1))
                    T.buffer_store(out, side.total(token, place, four(sums)), [i])
                for i, (t, _) in several:
                    put = partial(side.put, part, t, vector, out[i])
                    when(tirx.all(t < count, inside), put)

        gradient.sides(emit)
