"""Cross-entropy of a large vocabulary and its gradient on matrix units of 16-bit floats.

A table of int8 is exact in 16 bits; inputs and weights are scaled, so that they keep 11 bits, and
all sums are float32. The vocabulary is read once, chunk by chunk, as keys and values are by
attention (`attention_softmax.py`):

    1. the tokens with a label come first; their inputs become 16-bit floats
    2. logits of a chunk = h table^T; a work-group has some tokens and a strip of the vocabulary. Of
       a strip it leaves the largest logit m, the sum of the exponentials, and as 16-bit floats the
       weights ``e^(logit - m)`` times the row's scale over the strip's largest
    3. the factors that make weights of a chunk out of those of its strips, and the factors between
       this chunk and those before
    4. dh = factor dh + factor (weights table)
    5. the loss, and dh over the sum of all exponentials

The label's own weight is left out of all this: its part of the gradient is ``p - 1``, of which 16
bits would leave nothing where a token is sure. The last step adds it, as the others' sum of
exponentials over that of all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import MatrixUnit, Target
from ..decisions import choose
from ..tir import Buffer, Expr, bind, branch, shape, splat, static, when
from .elements import constant
from .half_block import EIGHT, HalfBlock, RowShare
from .halves import TOP, Halves
from .head_chunks import LOGITS_BYTES, Chunks
from .head_panels import InputPanel, TablePanel, WeightPanel, permuted, vectors_of_load
from .head_statistics import LOWEST
from .head_strip import STRIP, Left, Strip
from .head_tokens import Order
from .kernel import Gpu, build, ceil_div, elements, launch, registers, scratch, strided
from .matrix_tile import TILES, MatrixTile
from .operand import HALF
from .reduction import reduction
from .table import elements as table_elements
from .ternary_matrix import FEWEST
from .ternary_tile import WARP, cores
from .vectors import LANES, four, fours, held, lane
from .work import launch_works

THREADS = 128
"""Threads that combine what the strips of a token have left."""
GROUPS = 2
"""Work-groups that a core holds."""
LEAST_STEPS = 8
"""Steps below which a part of the depth is not worth its sums."""
SHORT = 64
"""Tokens up to which tiles are lower."""


def units(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `head_loss` and `head_loss_forward`; None without units, or for few tokens."""
    gpu, scaled, (h, table) = Gpu(target), int(parameters["scaled"]), function.params[:2]
    unit, tokens, columns = gpu.matrix("float16"), static(h.shape[0]), static(h.shape[1])
    if unit is None or tokens is None or columns is None or tokens < FEWEST:
        return None
    if gpu.subgroup != WARP or not gpu.subgroups or unit.depth % EIGHT:
        return None
    each = vectors_of_load(table)
    tile = _tile(gpu, unit, tokens, columns // EIGHT)
    if columns % (EIGHT * each) or tile is None or tile.step % each:
        return None

    def body(h: Buffer, table: Buffer, labels: Buffer, *rest: Buffer) -> None:
        scale = rest[0] if scaled else None
        _HeadLoss(gpu, unit, tile, h, table, labels, scale, rest[scaled:]).emit()

    return build(function, body)


def _tile(gpu: Gpu, unit: MatrixUnit, tokens: int, vectors: int) -> MatrixTile | None:
    """Return the tile, whose columns are a strip; None where none fits the device."""
    limits = gpu.target.limits
    assert limits is not None
    fitted = [tile.fitted(vectors, EIGHT, unit) for tile in TILES[HALF] if tile.columns == STRIP]
    tiles = [
        tile
        for tile in fitted
        if tile and tile.memory <= limits.shared_bytes and tile.threads(WARP) <= limits.max_threads
    ]
    if not tiles:
        return None
    usual = min(tiles, key=lambda tile: tile.rows) if tokens <= SHORT else tiles[0]
    rows = choose("tokens", [tile.rows for tile in tiles], usual.rows)
    return next(tile for tile in tiles if tile.rows == rows)


def plan(vocabulary: int, tokens: int, gradient: bool) -> Chunks:
    """Return as few chunks as the memory for the weights of so many tokens allows."""
    most = max(LOGITS_BYTES // (2 * tokens) // STRIP, 1) * STRIP if gradient else vocabulary
    count = ceil_div(vocabulary, most)
    size = ceil_div(ceil_div(vocabulary, count), STRIP) * STRIP
    return Chunks(vocabulary, count, size, STRIP)


class _HeadLoss:
    """The buffers and the extents of the kernel; `rest` is as in `head_loss.py`."""

    def __init__(
        self,
        gpu: Gpu,
        unit: MatrixUnit,
        tile: MatrixTile,
        h: Buffer,
        table: Buffer,
        labels: Buffer,
        scale: Buffer | None,
        rest: tuple[Buffer, ...],
    ) -> None:
        self.gpu, self.unit, self.tile, self.table, self.scale = gpu, unit, tile, table, scale
        self.factor: Buffer | None = rest[0] if len(rest) == 3 else None
        self.dh: Buffer | None = rest[2] if len(rest) == 3 else None
        self.loss = rest[-2] if len(rest) == 3 else rest[0]
        self.vocabulary, self.columns = shape(table)
        self.order = Order(gpu, h, labels)
        self.down = ceil_div(self.order.extent, tile.rows)
        rows = self.down * tile.rows
        self.halves = Halves(self.order.extent, rows, self.columns, self._input)
        self.chunks = plan(self.vocabulary, rows, self.dh is not None)
        gradient = self.dh is not None
        self.left = Left.allocate(self.order, self.chunks, self.halves.undo, scale, gradient)
        if gradient:
            self.factors = scratch([rows, self.chunks.strips], HALF)
            self.peak = scratch([self.chunks.count, rows])
            self.grow, self.shrink = (scratch([rows]) for _ in range(2))

    def _input(self, row: Expr, vector: Expr) -> Expr:
        """Return four columns of a token's input, as the table's panel has them."""
        found = bind(fours(self.order.h)[self.order.order[row], vector])
        return four(permuted(self.table, [lane(found, i) for i in range(LANES)]))

    def emit(self) -> None:
        """Emit the kernel."""
        self.order.emit()
        launch_works([self.halves])
        across = ceil_div(self.columns, self.tile.columns)
        wanted = GROUPS * cores(self.gpu) // (self.down * across)
        steps = self.chunks.size // (EIGHT * self.tile.step)
        usual = max(1, min(wanted, steps // LEAST_STEPS))
        cuts = dict.fromkeys([*(n for n in (1, 2, 4, 8) if n <= steps), usual])
        self.splits = choose("parts", tuple(cuts), usual)
        parts = None
        if self.dh is not None and self.splits > 1:
            parts = scratch([self.splits, *shape(self.dh)])

        def chunk(first: Expr, index: Expr) -> None:
            self._logits(first, index)
            if self.dh is not None:
                self._level(index)
                self._gradient(first, index, parts)

        self.chunks.each(chunk)
        self._finish()

    def _logits(self, first: Expr, index: Expr) -> None:
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

    def _level(self, index: Expr) -> None:
        """Emit the factors on a chunk's strips, on the chunk, and on what was before."""
        strips, reaches = self.chunks.strips, self.left.reach
        assert reaches is not None
        first = bind(index * strips) if self.chunks.count > 1 else 0
        with launch([self.order.extent], [THREADS]) as (t, thread):
            maxima = reduction(self.gpu, THREADS, thread, 2, combine=tirx.max)
            mine = registers([2])
            for i, lowest in enumerate((LOWEST, 0.0)):
                T.buffer_store(mine, T.float32(lowest), [i])

            def look(s: Expr) -> None:
                T.buffer_store(mine, T.max(mine[0], self.left.top[t, first + s]), [0])
                T.buffer_store(mine, T.max(mine[1], reaches[first + s]), [1])

            strided(strips, THREADS, thread, look)
            maxima.put([mine[0], mine[1]])
            top, reach = (held(maxima.get(i)) for i in range(2))

            def weigh(s: Expr) -> None:
                share = reaches[first + s] / reach * T.float32(2.0**TOP)
                value = T.exp(self.left.top[t, first + s] - top) * share
                T.buffer_store(self.factors, T.Cast(HALF, value), [t, s])

            strided(strips, THREADS, thread, weigh)

            def between() -> None:
                before = T.float32(LOWEST)
                if self.chunks.count > 1:
                    place = T.max(index - 1, 0)
                    before = T.if_then_else(index > 0, self.peak[place, t], before)
                before = held(before)
                peak = held(T.max(before, top))
                T.buffer_store(self.peak, peak, [index, t])
                T.buffer_store(self.shrink, T.exp(before - peak), [t])
                grow = T.exp(top - peak) * (reach * T.float32(2.0**-TOP))
                T.buffer_store(self.grow, grow, [t])

            when(thread == 0, between)

    def _gradient(self, first: Expr, index: Expr, parts: Buffer | None) -> None:
        """Emit the product of a chunk's weights and its rows of the table."""
        tile, order = self.tile, self.order
        steps = self.chunks.size // (EIGHT * tile.step)
        each = ceil_div(steps, self.splits)
        grid = [self.down, ceil_div(self.columns, tile.columns), ceil_div(steps, each)]
        with launch(grid, [tile.threads(self.gpu.subgroup)]) as (down, across, split, thread):
            row, column = bind(down * tile.rows), bind(across * tile.columns)
            begin = bind(split * each)
            count = each if steps % each == 0 else tirx.min(steps - begin, each)
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
                    exists = tirx.all(t < order.count[0], vector < self.columns // LANES)
                    put = partial(self._add, index, t, vector)
                    if parts is not None:
                        put = partial(self._keep, parts, split, t, vector)
                    when(exists, partial(put, values))

            block.emit(thread, begin, self._turns(row, count), finish)
        if parts is None:
            return
        vectors = self.columns // LANES

        def total(place: Expr) -> None:
            t, vector = bind(place // vectors), bind(place % vectors)
            sums = fours(parts)[0, t, vector]
            for split in range(1, ceil_div(steps, each)):
                sums = sums + fours(parts)[split, t, vector]
            when(t < order.count[0], lambda: self._add(index, t, vector, bind(sums)))

        elements(order.extent * vectors, THREADS, total)

    def _keep(self, parts: Buffer, split: Expr, t: Expr, vector: Expr, value: Expr) -> None:
        T.buffer_store(fours(parts), value, [split, t, vector])

    def _add(self, index: Expr, t: Expr, vector: Expr, value: Expr) -> None:
        """Emit the addition of a chunk's part of the gradient."""
        dh, source = fours(self.dh), bind(self.order.order[t])
        total = value * splat(bind(self.grow[t]), LANES)
        if self.chunks.count > 1:
            before = dh[source, vector] * splat(bind(self.shrink[t]), LANES)
            total = T.if_then_else(index == 0, total, total + before)
        T.buffer_store(dh, total, [source, vector])

    def _finish(self) -> None:
        """Emit the loss of each token, and its gradient."""
        strips = self.chunks.count * self.chunks.strips
        with launch([self.order.extent], [THREADS]) as (t, thread):
            tops = reduction(self.gpu, THREADS, thread, combine=tirx.max)
            totals = reduction(self.gpu, THREADS, thread)
            mine = registers([1])

            def reach(s: Expr) -> None:
                T.buffer_store(mine, T.max(mine[0], self.left.top[t, s]), [0])

            def add(s: Expr) -> None:
                part = self.left.total[t, s] * T.exp(self.left.top[t, s] - peak)
                T.buffer_store(mine, mine[0] + part, [0])

            T.buffer_store(mine, T.float32(LOWEST), [0])
            strided(strips, THREADS, thread, reach)
            tops.put([mine[0]])
            chosen = bind(self.left.chosen[t])
            peak = held(T.max(tops.get(), chosen))
            T.buffer_store(mine, T.float32(0.0), [0])
            strided(strips, THREADS, thread, add)
            totals.put([mine[0]])
            others, source = held(totals.get()), bind(self.order.order[t])
            total = held(others + T.exp(chosen - peak))

            def with_loss() -> None:
                def put() -> None:
                    T.buffer_store(self.loss, T.log(total) + (peak - chosen), [source])

                when(thread == 0, put)
                if self.dh is not None:
                    self._finish_gradient(t, thread, source, peak, others, total)

            # Barriers are behind: a branch may part the threads.
            without = partial(self._clear, thread, source)
            branch(t < self.order.count[0], with_loss, without)

    def _clear(self, thread: Expr, source: Expr) -> None:
        """Emit the zeros of a token without loss."""
        when(thread == 0, lambda: T.buffer_store(self.loss, T.float32(0.0), [source]))
        if self.dh is not None:
            dh, zeros = fours(self.dh), constant(0.0, LANES)
            strided(
                self.columns // LANES,
                THREADS,
                thread,
                lambda vector: T.buffer_store(dh, zeros, [source, vector]),
            )

    def _finish_gradient(
        self, t: Expr, thread: Expr, source: Expr, peak: Expr, others: Expr, total: Expr
    ) -> None:
        """Emit the division by the sum of the exponentials, and the label's part."""
        assert self.factor is not None
        label, last = bind(self.order.label[t]), self.chunks.count - 1
        inverse = bind(self.factor[0] / total)
        weight = held(inverse * T.exp(self.peak[last, t] - peak))
        own = bind(inverse * others)
        if self.scale is not None:
            own = own * self.scale[label]
        own, dh = held(own), fours(self.dh)

        def column(vector: Expr) -> None:
            row = table_elements(self.gpu, self.table, label, vector * LANES)
            value = dh[source, vector] * splat(weight, LANES) - row * splat(own, LANES)
            T.buffer_store(dh, value, [source, vector])

        strided(self.columns // LANES, THREADS, thread, column)
