"""The forward pass of a group of ternary projections with their adapters.

First every token passes the gate and the norm, where they belong to the kernel, is quantised and
multiplied with the adapters' factor A; then threads share the rows of the matrix in panels. A
panel's codes are unpacked once and serve all tokens; where there are few tokens, codes are unpacked
in registers as they stream by, and memory is the limit. Codes are ``W + 1``, so the token's sum of
activations is taken off at the end, where the scale and the adapters' factor B are applied, and the
residual added, while the sums are in registers.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..linear import Linear
from ..ternary import TILE, Segment, aligned, by_segment, segments
from ..tir import (
    Buffer,
    Expr,
    bind,
    branch,
    build,
    horizontal,
    int64,
    load,
    loop,
    shape,
    splat,
    static,
    store,
)
from .gated import gate_row
from .isa import Isa
from .low_rank import PARALLEL_WORK, dot_products
from .microkernel import Tile, row_tiles
from .norm import norm_row
from .ternary import row_words
from .vector_math import rounded

EPSILON = 1e-5
"""Smallest absmax of a token."""
FEW = 4
"""Up to this many tokens, unpacking in registers is cheaper than unpacking to memory."""
PARALLEL_PRODUCT = 1 << 20
"""8-bit multiply-adds of few tokens from which on the threads are worth waking."""
CHAINS = 8
"""Accumulators that hide the latency of a product."""


def panels(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `bitlinear` by panels of rows; None where a projection is no multiple of 16 rows."""
    if not aligned(segments(parameters)):
        return None
    isa = Isa(target)

    def body(*buffers: Buffer) -> None:
        linear = Linear.of(parameters, buffers)
        quantised = _Quantised(isa, linear)
        quantised.fill()
        lora = None if linear.a is None else _Lora(isa, linear)
        if lora is not None:
            lora.down(quantised.x if linear.lora_input is None else linear.lora_input)
        _Product(isa, linear, quantised, lora).emit()

    return build(function, body)


class _Quantised:
    """The tokens as 8-bit integers, with what undoes the quantisation.

    Attributes
    ----------
    x : Buffer
        ``(T, K)`` float32, the tokens after the gate and the norm.
    """

    def __init__(self, isa: Isa, linear: Linear) -> None:
        self.isa, self.linear = isa, linear
        self.tokens, self.columns = shape(linear.y)[0], linear.columns
        words = self.columns // TILE * isa.dot.steps
        self.words = T.alloc_buffer((self.tokens, words), isa.dot.dtype)
        self.sum = T.alloc_buffer((self.tokens,), isa.dot.sum_dtype)
        self.step = T.alloc_buffer((self.tokens,), "float32")
        self.x = linear.x if linear.is_plain else T.alloc_buffer((self.tokens, self.columns))

    def fill(self) -> None:
        """Emit the quantisation of every token, after its gate and its norm."""

        def token(t: Expr, _: int) -> None:
            self._prepare(t)
            self._token(self.x, t)

        # Some four operations an element; a launch pays from there on as for multiply-adds.
        branch(
            self.tokens * self.columns * 4 < PARALLEL_WORK,
            lambda: row_tiles(self.tokens, 1, token),
            lambda: row_tiles(self.tokens, 1, token, parallel=True),
        )

    def _prepare(self, t: Expr) -> None:
        """Emit the gate and the norm of a token."""
        linear, source = self.linear, self.linear.x
        if linear.activation:
            gate_row(linear.activation, self.isa.lanes, source, self.x, t)
            source = self.x
        if linear.norm is not None:
            norm_row(self.isa.lanes, linear.epsilon, source, linear.norm, self.x, t)

    def _token(self, x: Buffer, t: Expr) -> None:
        lanes, dot = self.isa.lanes, self.isa.dot
        vectors = TILE // lanes
        top = Tile(1, vectors, lanes)
        top.fill()
        with loop(self.columns // TILE) as k:
            for v in range(vectors):
                value = load(x, t, k * TILE + v * lanes, lanes=lanes)
                top[0, v] = tirx.max(top[0, v], tirx.abs(value))
        for v in range(1, vectors):
            top[0, 0] = tirx.max(top[0, 0], top[0, v])
        absmax = horizontal(top[0, 0], tirx.max)
        bound = bind(tirx.max(absmax, tirx.const(EPSILON, "float32")))
        store(self.step, bound / tirx.const(127.0, "float32"), t)
        factor = bind(tirx.const(127.0, "float32") / bound)
        total = Tile(1, 1, lanes, "int32")
        total.fill()
        stored = dot.steps * lanes // TILE
        with loop(self.columns // lanes) as k:
            # At most 127 (1 + 2^-23) before rounding: no clipping is left to do.
            value = bind(rounded(load(x, t, k * lanes, lanes=lanes) * splat(factor, lanes)))
            total[0, 0] = total[0, 0] + value
            store(self.words, dot.activations(value), t, k * stored)
        sum_ = horizontal(total[0, 0], lambda a, b: a + b)
        store(self.sum, T.cast(sum_, dot.sum_dtype), t)


class _Lora:
    """The adapters: ``u = lora_scale x A^T`` for each, and the rows of B that a panel needs."""

    def __init__(self, isa: Isa, linear: Linear) -> None:
        self.isa, self.parts, self.scale = isa, linear.parts, linear.lora_scale
        self.tokens, self.a, self.b = shape(linear.y)[0], linear.a, linear.b
        self.adapters, self.rank, self.columns = shape(self.a)
        # One more slot, of zeros, serves the projections without an adapter.
        self.plain = any(part.adapter is None for part in self.parts)
        slots = self.adapters + int(self.plain)
        self.u = T.alloc_buffer((self.tokens, slots, self.rank), "float32")

    def down(self, x: Buffer) -> None:
        """Emit u."""
        lanes, scale = self.isa.lanes, tirx.const(self.scale, "float32")
        with loop(self.adapters) as s:
            dot_products(
                self.isa,
                self.tokens,
                self.rank,
                self.columns,
                lambda t, k: load(x, t, k, lanes=lanes),
                lambda j, k: load(self.a, s, j, k, lanes=lanes),
                lambda t, j, total: store(self.u, total * scale, t, s, j),
            )
        if self.plain:
            with loop(self.tokens) as t, loop(self.rank) as j:
                store(self.u, tirx.const(0.0, "float32"), t, self.adapters, j)

    def up(self, sums: Tile, token: Expr, rows: list[Expr]) -> None:
        """Emit ``sums[i, v] += sum_j u[token + i, s(v), j] B[j, column(v) ..]``."""
        slots, columns = zip(*[self._place(row) for row in rows], strict=True)
        with loop(self.rank) as j:
            for v in range(sums.width):
                factor = bind(load(self.b, j, columns[v], lanes=sums.lanes))
                for i in range(sums.height):
                    value = splat(self.u[token + i, slots[v], j], sums.lanes)
                    sums[i, v] = sums[i, v] + value * factor

    def _place(self, row: Expr) -> tuple[Expr, Expr]:
        """Return the adapter's slot in u and the first column of B for a vector of rows."""

        def slot(part: Segment) -> Expr:
            return int64(self.adapters if part.adapter is None else part.adapter)

        def column(part: Segment) -> Expr:
            return int64(0) if part.adapter is None else row + (part.column - part.begin)

        return (
            bind(by_segment(self.parts, row, slot)),
            bind(by_segment(self.parts, row, column)),
        )


class _Product:
    """The ternary product over panels of rows, and its epilogue."""

    def __init__(self, isa: Isa, linear: Linear, quantised: _Quantised, lora: _Lora | None) -> None:
        self.isa, self.parts, self.quantised, self.lora = isa, linear.parts, quantised, lora
        self.packed, self.scales = linear.packed, linear.scales
        self.residual, self.y = linear.residual, linear.y
        self.tokens, self.tiles = quantised.tokens, quantised.columns // TILE
        self.rows = self.parts[-1].end
        self.few = static(self.tokens) is not None and self.tokens <= FEW
        # Few tokens are one tile's height; how many rows at once, and in how many chains, is open:
        # 0 is as many as the tile leaves room for.
        dot = isa.dot
        if self.few:
            self.height, self.width = self.tokens, choose("rows", (1, 2, 4, 6, 8), dot.tile[1])
        else:
            self.height, self.width = choose("tile", dot.tiles, dot.tile)
        self.chains = choose("chains", (0, 1, 2, 4), 0) if self.few else 0
        self.group = choose("group", (1,) if dot.group == 1 else (1, 2, 4), dot.group)

    def emit(self) -> None:
        """Emit the product of all rows with all tokens."""
        work, parallel = self.rows * self.tiles * TILE, True
        if self.few:
            parallel = work * self.tokens >= PARALLEL_PRODUCT
        row_tiles(self.rows // self.isa.lanes, self.width, self._panel, parallel)

    def _panel(self, first: Expr, width: int) -> None:
        """Emit `width` vectors of rows from vector `first` on, for every token."""
        lanes, height = self.isa.lanes, self.height
        rows = [bind((first + v) * lanes) for v in range(width)]

        def streamed(token: Expr, high: int) -> None:
            self._tile(token, high, rows, None)

        def unpacked() -> None:
            panel = self._unpack(rows)
            row_tiles(
                self.tokens, height, lambda t, high: self._tile(t, high, rows, panel), overlap=True
            )

        if static(self.tokens) is None:
            branch(
                self.tokens >= height,
                unpacked,
                lambda: row_tiles(self.tokens, 1, streamed),
            )
        elif self.few:
            streamed(0, self.tokens)
        else:
            unpacked()

    def _unpack(self, rows: list[Expr]) -> Buffer:
        """Emit the unpacking of rows; the buffer is ``(K / 16, steps, width, lanes)``."""
        lanes, dot = self.isa.lanes, self.isa.dot
        panel = T.alloc_buffer((self.tiles, dot.steps, len(rows), lanes), dot.dtype)
        with loop(self.tiles) as k:
            for v, row in enumerate(rows):
                words = bind(row_words(self.packed, row, k, lanes))
                for step in range(dot.steps):
                    store(panel, dot.codes(words, step), k, step, v, 0)
        return panel

    def _tile(self, token: Expr, height: int, rows: list[Expr], panel: Buffer | None) -> None:
        """Emit `height` tokens by the rows, from unpacked or from packed codes."""
        lanes, dot, width = self.isa.lanes, self.isa.dot, len(rows)
        # A chain of products is as slow as their latency: short tiles keep several chains.
        chains = self.chains or (2 if height * width <= CHAINS else 1)
        group = max(self.group // chains, 1)
        tiles = [Tile(height, width, lanes, dot.sum_dtype) for _ in range(chains)]
        for tile in tiles:
            tile.fill()
        with loop(self.tiles) as k:
            words = [None] * width
            if panel is None:
                words = [bind(row_words(self.packed, row, k, lanes)) for row in rows]
            for first in range(0, dot.steps, group):
                steps, sums = range(first, first + group), tiles[first // group % chains]
                for v in range(width):
                    codes = [
                        bind(
                            dot.codes(words[v], step)
                            if panel is None
                            else load(panel, k, step, v, 0, lanes=lanes)
                        )
                        for step in steps
                    ]
                    for i in range(height):
                        values = [
                            self.quantised.words[token + i, k * dot.steps + step] for step in steps
                        ]
                        sums[i, v] = dot.accumulate(sums[i, v], codes, values)
        for i, v in tiles[0]:
            for tile in tiles[1:]:
                tiles[0][i, v] = tiles[0][i, v] + tile[i, v]
        self._finish(tiles[0], token, rows)

    def _finish(self, sums: Tile, token: Expr, rows: list[Expr]) -> None:
        """Emit the scale, the adapters, the residual and the store of a tile."""
        lanes, q = sums.lanes, self.quantised
        scales = [bind(by_segment(self.parts, row, lambda p: self.scales[p.index])) for row in rows]
        out = Tile(sums.height, sums.width, lanes)
        for i, v in sums:
            exact = sums[i, v] - splat(q.sum[token + i], lanes)
            factor = splat(q.step[token + i] * scales[v], lanes)
            out[i, v] = T.cast(exact, f"float32x{lanes}") * factor
        if self.lora is not None:
            self.lora.up(out, token, rows)
        if self.residual is not None:
            for i, v in out:
                out[i, v] = out[i, v] + load(self.residual, token + i, rows[v], lanes=lanes)
        out.store(lambda i, v: (self.y, token + i, rows[v]))
