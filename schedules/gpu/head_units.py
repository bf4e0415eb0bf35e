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

Steps 2 and 4 are the products of `head_products.py`, or of `head_warpgroups.py` where warpgroups
multiply.

The label's own weight is left out of all this: its part of the gradient is ``p - 1``, of which 16
bits would leave nothing where a token is sure. The last step adds it, as the others' sum of
exponentials over that of all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, branch, shape, splat, static, when
from .elements import constant
from .half_block import EIGHT
from .halves import TOP
from .head_chunks import LOGITS_BYTES, Chunks
from .head_gradient import ChunkGradient, PartGradient
from .head_products import Products, UnitProducts
from .head_statistics import LOWEST
from .head_strip import STRIP, Left
from .head_tokens import Order
from .head_warpgroups import WarpgroupProducts
from .kernel import Gpu, build, ceil_div, elements, launch, registers, scratch, strided
from .operand import HALF
from .reduction import reduction
from .table import elements as table_elements
from .ternary_matrix import FEWEST
from .ternary_tile import WARP
from .vectors import LANES, fours, held
from .work import launch_works

Layout = Callable[[Buffer, Order], Products]
"""Returns the products of a table and tokens."""
THREADS = 128
"""Threads that combine what the strips of a token have left."""


def units(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `head_loss` and `head_loss_forward`; None without units, or for few tokens."""
    gpu, scaled, (h, table) = Gpu(target), int(parameters["scaled"]), function.params[:2]
    tokens = static(h.shape[0])
    if tokens is None or static(h.shape[1]) is None or tokens < FEWEST:
        return None
    layout = _layout(gpu, table, tokens, scaled)
    if layout is None:
        return None

    def body(h: Buffer, table: Buffer, labels: Buffer, *rest: Buffer) -> None:
        scale, order = rest[0] if scaled else None, Order(gpu, h, labels)
        _HeadLoss(gpu, layout(table, order), order, table, scale, rest[scaled:]).emit()

    return build(function, body)


def _layout(gpu: Gpu, table: Buffer, tokens: int, scaled: int) -> Layout | None:
    """Return how the products are laid out; None where they can't be."""
    if scaled and WarpgroupProducts.fit(gpu, table):
        return WarpgroupProducts
    unit = gpu.matrix("float16")
    if unit is None or gpu.subgroup != WARP or not gpu.subgroups or unit.depth % EIGHT:
        return None
    tile = UnitProducts.fitting(gpu, unit, table, tokens)
    return None if tile is None else partial(UnitProducts, gpu, unit, tile)


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
        products: Products,
        order: Order,
        table: Buffer,
        scale: Buffer | None,
        rest: tuple[Buffer, ...],
    ) -> None:
        self.gpu, self.products, self.order = gpu, products, order
        self.table, self.scale = table, scale
        self.factor: Buffer | None = rest[0] if len(rest) == 3 else None
        self.dh: Buffer | None = rest[2] if len(rest) == 3 else None
        self.loss = rest[-2] if len(rest) == 3 else rest[0]
        self.vocabulary, self.columns = shape(table)
        rows, gradient = products.rows, self.dh is not None
        self.chunks = plan(self.vocabulary, rows, gradient)
        undo = products.halves.undo
        self.left = Left.allocate(order, self.chunks, undo, scale, gradient)
        if gradient:
            self.peak = scratch([self.chunks.count, rows])
            self.grow, self.shrink = (scratch([rows]) for _ in range(2))
        products.use(self.left)

    def emit(self) -> None:
        """Emit the kernel."""
        self.order.emit()
        launch_works([self.products.halves])
        self.parts: Buffer | None = None
        if self.dh is not None and self.products.parts > 1:
            self.parts = scratch([self.products.parts, *shape(self.dh)])

        def chunk(first: Expr, index: Expr) -> None:
            self.products.logits(first, index)
            if self.dh is not None:
                self._level(index)
                self._gradient(first, index)

        self.chunks.each(chunk)
        self._finish()

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

            def factor(s: Expr) -> Expr:
                share = reaches[first + s] / reach * T.float32(2.0**TOP)
                return T.Cast(HALF, T.exp(self.left.top[t, first + s] - top) * share)

            self.products.level(t, THREADS, thread, factor)

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

    def _gradient(self, first: Expr, index: Expr) -> None:
        """Emit a chunk's part of the gradient."""
        order, products, vectors = self.order, self.products, self.columns // LANES
        only = self.chunks.count == 1
        chunk = ChunkGradient(self.dh, order.order, self.grow, self.shrink, None if only else index)
        if self.parts is None:
            products.gradient(first, chunk)
            return
        parts = PartGradient(self.parts)
        products.gradient(first, parts)

        def total(place: Expr) -> None:
            t, vector = bind(place // vectors), bind(place % vectors)

            def add() -> None:
                sums = parts.all(products.parts, t, vector)
                chunk.sides(lambda side: side.put(0, t, vector, side.total(t, vector, sums)))

            when(t < order.count[0], add)

        elements(order.extent * vectors, THREADS, total)

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
