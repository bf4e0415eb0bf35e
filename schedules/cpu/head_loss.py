"""Cross-entropy of a large vocabulary and its gradient, without the logits ever existing.

The tokens that carry loss are gathered in chunks and stand in the lanes of vectors. Threads share
the vocabulary in a fixed number of slices, whatever their own number, so that results do not
depend on it. A slice walks its rows in blocks: a block of the table becomes float32 once, gives
its logits, then their exponentials under a running maximum (as in Milakov and Gimelshein 2018,
arXiv 1805.02867), and these at once give the block's share of the gradient:

    dh[t] = factor (sum_v e^(x[t, v] - m) w[v] / sum_v e^(x[t, v] - m) - w[label[t]])

At the end of a chunk the slices are brought to one maximum and added in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..tir import (
    Buffer,
    Expr,
    bind,
    branch,
    build,
    load,
    loop,
    shape,
    splat,
    static,
    store,
    when,
    zeros,
)
from .isa import Isa
from .logits import table_values
from .microkernel import EvenCut, Tile, accumulate, row_tiles
from .vector_math import exp

CHUNK = 64
"""Tokens of a chunk by default, where there are as many."""
BLOCK_BYTES = 192 << 10
"""Largest block of the table in float32 by default; it stays in the second-level cache between its
uses."""
SLICES = 16
"""Most slices of the vocabulary, the bound on how many threads help."""
PARTIAL_BYTES = 4 << 20
"""Largest memory for the slices' gradients."""
PADDING = 16
"""Elements of a 64-byte cache line."""
LOWEST = -1e30
"""The maximum of no logits."""


def chunks(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `head_loss` and `head_loss_forward`."""
    isa, scaled = Isa(target), int(parameters["scaled"])

    def body(h: Buffer, table: Buffer, labels: Buffer, *rest: Buffer) -> None:
        scale = rest[0] if scaled else None
        _HeadLoss(isa, h, table, labels, scale, rest[scaled:]).emit()

    return build(function, body)


class _HeadLoss:
    """The buffers and the extents of the kernel.

    Parameters
    ----------
    isa : Isa
        The instruction set.
    h, table, labels : Buffer
        As in `models/kernels/head.py`.
    scale : Buffer or None
        Of the table's rows.
    rest : tuple of Buffer
        ``(loss,)``, or ``(inverse_count, loss, dh)`` with the gradient.
    """

    def __init__(
        self,
        isa: Isa,
        h: Buffer,
        table: Buffer,
        labels: Buffer,
        scale: Buffer | None,
        rest: tuple[Buffer, ...],
    ) -> None:
        self.isa, self.h, self.table, self.labels, self.scale = isa, h, table, labels, scale
        self.factor: Buffer | None = rest[0] if len(rest) == 3 else None
        self.dh: Buffer | None = rest[2] if len(rest) == 3 else None
        self.loss = rest[-2] if len(rest) == 3 else rest[0]
        self.tokens, self.columns = shape(h)
        self.vocabulary = shape(table)[0]
        lanes, (height, width) = isa.lanes, choose("tile", isa.tiles, isa.tile)
        self.tile = height, width
        most = choose("chunk", (32, CHUNK, 128), CHUNK)
        wanted = min(static(self.tokens) or most, most)
        self.chunk = -(-wanted // lanes) * lanes
        # The logits' register tile: rows of the table by vectors of tokens.
        vectors = self.chunk // lanes
        self.width = max(w for w in range(1, width + 1) if vectors % w == 0)
        self.height = height * width // self.width
        size = choose("block", (96 << 10, BLOCK_BYTES, 384 << 10), BLOCK_BYTES)
        rows = max(size // (4 * self.columns) // self.height, 1) * self.height
        self.blocks = EvenCut.of(self.vocabulary, rows)
        most = PARTIAL_BYTES // (4 * self.chunk * self.columns) if self.dh is not None else SLICES
        self.slices = min(max(most, 2), SLICES, self.blocks.tiles)
        self._allocate()

    def _allocate(self) -> None:
        chunk, slices = self.chunk, self.slices
        self.active = T.alloc_buffer((self.tokens,), "int32")
        self.count = T.alloc_buffer((1,), "int32")
        self.token = T.alloc_buffer((chunk,), "int32")
        group = self.width * self.isa.lanes
        self.turned = T.alloc_buffer((chunk // group, self.columns, group), "float32")
        self.chosen = T.alloc_buffer((chunk,), "float32")
        self.top = T.alloc_buffer((slices, chunk), "float32")
        self.total = T.alloc_buffer((slices, chunk), "float32")
        if self.dh is not None:
            self.partial = T.alloc_buffer((slices, chunk, self.columns), "float32")

    def emit(self) -> None:
        """Emit the kernel."""
        self._select()
        count = T.Cast("int64", self.count[0])
        with loop((count + (self.chunk - 1)) // self.chunk) as c:
            first = bind(c * self.chunk)
            self._gather(first)
            with loop(self.slices, parallel=True) as s:
                self._slice(s)
            with loop(T.min(count - first, T.int64(self.chunk)), parallel=True) as t:
                self._finish(t)

    def _select(self) -> None:
        """Emit the list of tokens with a label, and the zeros of those without."""
        store(self.count, tirx.const(0, "int32"), 0)
        with loop(self.tokens) as t:

            def keep() -> None:
                store(self.active, T.Cast("int32", t), self.count[0])
                store(self.count, self.count[0] + 1, 0)

            def drop() -> None:
                store(self.loss, tirx.const(0.0, "float32"), t)
                if self.dh is not None:
                    with loop(self.columns // self.isa.lanes) as k:
                        zero = zeros("float32", self.isa.lanes)
                        store(self.dh, zero, t, k * self.isa.lanes)

            branch(self.labels[t] >= 0, keep, drop)

    def _gather(self, first: Expr) -> None:
        """Emit the transposition of a chunk's tokens; lanes without a token hold zeros."""
        group = self.width * self.isa.lanes
        with loop(self.chunk) as t:

            def copy(value: Callable[[Expr], Expr]) -> None:
                with loop(self.columns) as k:
                    store(self.turned, value(k), t // group, k, t % group)

            def take() -> None:
                store(self.token, self.active[first + t], t)
                copy(lambda k: self.h[self.token[t], k])

            def pad() -> None:
                store(self.token, tirx.const(-1, "int32"), t)
                copy(lambda k: tirx.const(0.0, "float32"))

            branch(first + t < T.Cast("int64", self.count[0]), take, pad)

    def _slice(self, s: Expr) -> None:
        """Emit a slice's maximum, sum and gradient, block by block."""
        lanes = self.isa.lanes
        with loop(self.chunk // lanes) as v:
            store(self.top, splat(LOWEST, lanes), s, v * lanes)
            store(self.total, zeros("float32", lanes), s, v * lanes)
        if self.dh is not None:
            with loop(self.chunk) as t, loop(self.columns // lanes) as k:
                store(self.partial, zeros("float32", lanes), s, t, k * lanes)
        n = self.blocks.tiles
        with loop((s + 1) * n // self.slices, begin=s * n // self.slices) as b:
            self.blocks.emit(b, lambda row, rows: self._block(s, row, rows))

    def _block(self, s: Expr, row: Expr, rows: int) -> None:
        """Emit the share of `rows` rows of the table from `row` on."""
        lanes = self.isa.lanes
        row = bind(row)
        # A row longer by one cache line: rows of 2^n bytes would all compete for the same lines.
        weights = T.alloc_buffer((rows, self.columns + PADDING), "float32")
        values = T.alloc_buffer((rows, self.chunk), "float32")
        rescale = T.alloc_buffer((self.chunk,), "float32")
        with loop(rows) as r, loop(self.columns // lanes) as k:
            store(weights, table_values(self.isa, self.table, row + r, k * lanes), r, k * lanes)
        self._logits(row, rows, weights, values)
        with loop(self.chunk) as t:
            place = bind(self._label(t) - row)
            inside = tirx.all(self.token[t] >= 0, place >= 0, place < rows)
            when(inside, lambda: store(self.chosen, values[place, t], t))
        with loop(self.chunk // lanes) as v:
            self._exponentials(s, row, rows, values, rescale, v * lanes)
        if self.dh is not None:
            self._gradient(s, rows, weights, values, rescale)

    def _label(self, t: Expr) -> Expr:
        """Return the label of a lane that holds a token, as int64; of another lane some label."""
        return T.Cast("int64", self.labels[T.max(self.token[t], 0)])

    def _row_scale(self, row: Expr) -> Expr:
        return 1.0 if self.scale is None else self.scale[row]

    def _logits(self, row: Expr, rows: int, weights: Buffer, values: Buffer) -> None:
        """Emit ``values[r, t]``, the logits of a block with the tokens as lanes."""
        lanes, group = self.isa.lanes, self.width * self.isa.lanes

        def tile(first: Expr, high: int) -> None:
            with loop(self.chunk // group) as g:
                sums = Tile(high, self.width, lanes)
                sums.fill()
                accumulate(
                    sums,
                    self.columns,
                    lambda i, k: weights[first + i, k],
                    lambda k, v: load(self.turned, g, k, v * lanes, lanes=lanes),
                )
                sums.store(
                    lambda i, v: (values, first + i, g * group + v * lanes),
                    lambda x, i, v: x * splat(self._row_scale(row + first + i), lanes),
                )

        row_tiles(rows, self.height, tile)

    def _exponentials(
        self, s: Expr, row: Expr, rows: int, values: Buffer, rescale: Buffer, t: Expr
    ) -> None:
        """Emit the running maximum and sum, and turn logits into scaled exponentials."""
        lanes = self.isa.lanes
        old = bind(load(self.top, s, t, lanes=lanes))
        state = Tile(2, 1, lanes)
        state[0, 0] = old
        with loop(rows) as r:
            state[0, 0] = tirx.max(state[0, 0], load(values, r, t, lanes=lanes))
        top = bind(state[0, 0])
        shrink = bind(exp(old - top))
        state[1, 0] = load(self.total, s, t, lanes=lanes) * shrink
        with loop(rows) as r:
            e = bind(exp(load(values, r, t, lanes=lanes) - top))
            state[1, 0] = state[1, 0] + e
            if self.dh is not None:
                store(values, e * splat(self._row_scale(row + r), lanes), r, t)
        store(self.top, top, s, t)
        store(self.total, state[1, 0], s, t)
        store(rescale, shrink, t)

    def _gradient(
        self, s: Expr, rows: int, weights: Buffer, values: Buffer, rescale: Buffer
    ) -> None:
        """Emit ``partial[t] = partial[t] rescale[t] + sum_r values[r, t] weights[r]``."""
        lanes, (height, width) = self.isa.lanes, self.tile

        def panel(first: Expr, wide: int) -> None:
            column = bind(first * lanes)

            def tile(token: Expr, high: int) -> None:
                sums = Tile(high, wide, lanes)
                sums.fill()
                accumulate(
                    sums,
                    rows,
                    lambda i, r: values[r, token + i],
                    lambda r, v: load(weights, r, column + v * lanes, lanes=lanes),
                )
                sums.store(
                    lambda i, v: (self.partial, s, token + i, column + v * lanes),
                    lambda x, i, v: (
                        x
                        + load(self.partial, s, token + i, column + v * lanes, lanes=lanes)
                        * splat(rescale[token + i], lanes)
                    ),
                )

            row_tiles(self.chunk, height, tile)

        row_tiles(self.columns // lanes, width, panel)

    def _finish(self, t: Expr) -> None:
        """Emit the loss and gradient of one lane from its slices."""
        lanes = self.isa.lanes
        state = T.alloc_buffer((2,), "float32")
        share = T.alloc_buffer((self.slices,), "float32")
        store(state, tirx.const(LOWEST, "float32"), 0)
        store(state, tirx.const(0.0, "float32"), 1)
        with loop(self.slices) as s:
            store(state, T.max(state[0], self.top[s, t]), 0)
        with loop(self.slices) as s:
            store(share, exp(self.top[s, t] - state[0]), s)
            store(state, state[1] + self.total[s, t] * share[s], 1)
        token, label = bind(self.token[t]), bind(self._label(t))
        store(self.loss, T.log(state[1]) + (state[0] - self.chosen[t]), token)
        if self.dh is None or self.factor is None:
            return
        factor = bind(self.factor[0])
        mean, pull = bind(factor / state[1]), bind(factor * self._row_scale(label))
        with loop(self.columns // lanes) as k:
            place = bind(k * lanes)
            sums = Tile(1, 1, lanes)
            sums.fill()
            with loop(self.slices) as s:
                part = load(self.partial, s, t, place, lanes=lanes)
                sums[0, 0] = sums[0, 0] + part * splat(share[s], lanes)
            target = table_values(self.isa, self.table, label, place) * splat(pull, lanes)
            store(self.dh, sums[0, 0] * splat(mean, lanes) - target, token, place)
