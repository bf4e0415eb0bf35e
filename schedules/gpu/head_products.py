"""The head's two products, on the units of a subgroup; another layout gives what these give.

The logits of a chunk of the vocabulary, of which `Strip` leaves what `Left` has room for, and the
gradient that the chunk's weights are of.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import MatrixUnit
from ..decisions import choose
from ..tir import Buffer, Expr, bind, shape, when
from .half_block import EIGHT, HalfBlock, RowShare
from .halves import Halves
from .head_gradient import Gradient
from .head_panels import InputPanel, TablePanel, WeightPanel, permuted, vectors_of_load
from .head_strip import STRIP, Left, Strip
from .head_tokens import Order
from .kernel import Gpu, ceil_div, launch, scratch, strided
from .matrix_tile import TILES, MatrixTile
from .operand import HALF
from .ternary_tile import WARP, cores
from .vectors import LANES, four, fours, lane

GROUPS = 2
"""Work-groups that a core holds."""
LEAST_STEPS = 8
"""Steps below which a part of the depth is not worth its sums."""
SHORT = 64
"""Tokens up to which tiles are lower."""
Factor = Callable[[Expr], Expr]
"""``factor(strip)`` returns that of a token on a strip of a chunk, float16."""


class Products(Protocol):
    """A layout of both products.

    Attributes
    ----------
    rows : int
        T', the tokens of whole tiles.
    halves : Halves
        The work that makes 16-bit floats of the tokens' inputs, ``(T', N / 2)`` words.
    parts : int
        Into how many parts the gradient's depth is cut.
    """

    rows: int
    halves: Halves
    parts: int

    def use(self, left: Left) -> None:
        """Take the buffers that are between both, and allocate others; outside of launches."""

    def logits(self, first: Expr, index: Expr) -> None:
        """Emit the launch for the chunk `index`, whose first row is `first`."""

    def level(self, token: Expr, threads: int, thread: Expr, factor: Factor) -> None:
        """Emit, inside a launch of so many threads, what becomes of a token's factors."""

    def gradient(self, first: Expr, gradient: Gradient) -> None:
        """Emit the launch of the chunk's weights times the table's rows."""


class UnitProducts:
    """Both on the units of a subgroup, of 16-bit floats; see `HalfBlock`.

    Parameters
    ----------
    gpu, unit, tile
        As of `HalfBlock`; the tile's columns are a strip.
    table : Buffer
        ``(V, N)`` int8 or float16.
    order : Order
        The tokens.
    """

    def __init__(
        self, gpu: Gpu, unit: MatrixUnit, tile: MatrixTile, table: Buffer, order: Order
    ) -> None:
        self.gpu, self.unit, self.tile, self.table, self.order = gpu, unit, tile, table, order
        self.columns = shape(table)[1]
        self.down = ceil_div(order.extent, tile.rows)
        self.rows = self.down * tile.rows
        self.halves = Halves(order.extent, self.rows, self.columns, self._input)
        self.parts = 1

    @staticmethod
    def fitting(gpu: Gpu, unit: MatrixUnit, table: Buffer, tokens: int) -> MatrixTile | None:
        """Return the tile, whose columns are a strip; None where none fits table and device."""
        limits, columns, each = gpu.target.limits, shape(table)[1], vectors_of_load(table)
        assert limits is not None
        if columns % (EIGHT * each):
            return None
        fitted = [
            tile.fitted(columns // EIGHT, EIGHT, unit)
            for tile in TILES[HALF]
            if tile.columns == STRIP
        ]
        tiles = [
            tile
            for tile in fitted
            if tile
            and tile.memory <= limits.shared_bytes
            and tile.threads(WARP) <= limits.max_threads
        ]
        if not tiles:
            return None
        usual = min(tiles, key=lambda tile: tile.rows) if tokens <= SHORT else tiles[0]
        rows = choose("tokens", [tile.rows for tile in tiles], usual.rows)
        tile = next(tile for tile in tiles if tile.rows == rows)
        return None if tile.step % each else tile

    def _input(self, row: Expr, vector: Expr) -> Expr:
        """Return four columns of a token's input, as the table's panel has them."""
        found = bind(fours(self.order.h)[self.order.order[row], vector])
        return four(permuted(self.table, [lane(found, i) for i in range(LANES)]))

    def use(self, left: Left) -> None:
        """Take the buffers, and share the gradient's depth out."""
        self.left, self.chunks = left, left.chunks
        if left.weights is None:
            return
        self.factors = scratch([self.rows, self.chunks.strips], HALF)
        across = ceil_div(self.columns, self.tile.columns)
        wanted = GROUPS * cores(self.gpu) // (self.down * across)
        steps = self.chunks.size // (EIGHT * self.tile.step)
        usual = max(1, min(wanted, steps // LEAST_STEPS))
        cuts = dict.fromkeys([*(n for n in (1, 2, 4, 8) if n <= steps), usual])
        self.each = ceil_div(steps, choose("parts", tuple(cuts), usual))
        self.steps, self.parts = steps, ceil_div(steps, self.each)

    def logits(self, first: Expr, index: Expr) -> None:
        """Emit the logits of a chunk, and what is left of each strip."""
        tile, strips = self.tile, self.chunks.strips
        steps = self.columns // (EIGHT * tile.step)
        threads = tile.threads(self.gpu.subgroup)
        with launch([self.down, strips], [threads]) as (down, strip, thread):
            row, begin = bind(down * tile.rows), bind(first + strip * STRIP)
            block = HalfBlock(
                self.gpu,
                self.unit,
                tile,
                InputPanel(tile, self.halves.words, row),
                TablePanel(tile, self.table, self.chunks, begin, 0, along_depth=True),
            )
            finish = partial(Strip, self.left, row, begin, bind(index * strips + strip), strip)
            block.emit(thread, 0, self._turns(row, steps), lambda share: finish(share).emit())

    def _turns(self, row: Expr, steps: Expr) -> Expr:
        """Return the steps of a work-group: one where none of its tokens carries loss."""
        one = tirx.const(1, "int32")
        return bind(tirx.Select(row < self.order.count[0], steps * one, one))

    def level(self, token: Expr, threads: int, thread: Expr, factor: Factor) -> None:
        """Emit the store of the factors, which the gradient's panel multiplies by."""

        def weigh(strip: Expr) -> None:
            T.buffer_store(self.factors, factor(strip), [token, strip])

        strided(self.chunks.strips, threads, thread, weigh)

    def gradient(self, first: Expr, gradient: Gradient) -> None:
        """Emit the product of a chunk's weights and its rows of the table."""
        tile, each = self.tile, self.each
        grid = [self.down, ceil_div(self.columns, tile.columns), self.parts]
        with launch(grid, [tile.threads(self.gpu.subgroup)]) as (down, across, part, thread):
            row, column = bind(down * tile.rows), bind(across * tile.columns)
            begin = bind(part * each)
            count = each if self.steps % each == 0 else tirx.min(self.steps - begin, each)
            block = HalfBlock(
                self.gpu,
                self.unit,
                tile,
                WeightPanel(tile, self.left.weights, row, self.factors, STRIP),
                TablePanel(tile, self.table, self.chunks, first, column, along_depth=False),
            )

            def finish(share: RowShare) -> None:
                for i, below in enumerate(share.rows):
                    values = four(permuted(self.table, share.sums(i)))
                    t, vector = bind(row + below), bind(column // LANES + share.vector(0))
                    exists = tirx.all(t < self.order.count[0], vector < self.columns // LANES)
                    when(exists, partial(put, t, vector, values))

            def put(t: Expr, vector: Expr, values: Expr) -> None:
                gradient.sides(
                    lambda side: side.put(part, t, vector, side.total(t, vector, values))
                )

            block.emit(thread, begin, self._turns(row, count), finish)
