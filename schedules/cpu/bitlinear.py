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
MOST_FRACTIONS = 16
"""Sums of fractions in registers; each row of a token has two."""
MOST_FRACTION_COLUMNS = 1 << 14
"""Columns up to which three times a sum of fractions fits 32 bits."""
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
        lora = None
        if linear.a is not None:
            tokens = shape(linear.y)[0]
            lora = Lora(isa, linear.parts, linear.lora_scale, tokens, linear.a, linear.b)
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
        packing = linear.packing
        self.padded = packing.words(self.columns) * packing.columns
        self.words = T.alloc_buffer((self.tokens, self.padded // isa.dot.columns), isa.dot.dtype)
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
        stored = lanes // dot.columns
        with loop(self.columns // lanes) as k:
            # At most 127 (1 + 2^-23) before rounding: no clipping is left to do.
            value = bind(rounded(load(x, t, k * lanes, lanes=lanes) * splat(factor, lanes)))
            total[0, 0] = total[0, 0] + value
            store(self.words, dot.activations(value), t, k * stored)
        for place in range(self.columns // dot.columns, self.padded // dot.columns):
            store(self.words, tirx.const(0, dot.dtype), t, place)
        sum_ = horizontal(total[0, 0], lambda a, b: a + b)
        store(self.sum, T.cast(sum_, dot.sum_dtype), t)


class Lora:
    """The adapters: ``u = lora_scale x A^T`` for each, and the rows of B that a panel needs."""

    def __init__(
        self, isa: Isa, parts: list[Segment], scale: float, tokens: Expr, a: Buffer, b: Buffer
    ) -> None:
        self.isa, self.parts, self.scale = isa, parts, scale
        self.tokens, self.a, self.b = tokens, a, b
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

    def __init__(self, isa: Isa, linear: Linear, quantised: _Quantised, lora: Lora | None) -> None:
        self.isa, self.parts, self.quantised, self.lora = isa, linear.parts, quantised, lora
        self.packed, self.scales = linear.packed, linear.scales
        self.residual, self.y = linear.residual, linear.y
        self.tokens, self.packing = quantised.tokens, linear.packing
        self.words = self.packing.words(quantised.columns)
        self.steps = self.packing.columns // isa.dot.columns
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
        # Steps that a group does not divide are better taken one by one.
        group = 1 if self.steps % dot.group and not dot.widens else dot.group
        self.group = choose("group", (1,) if dot.group == 1 else (1, 2, 4), group)

    def emit(self) -> None:
        """Emit the product of all rows with all tokens."""
        work, parallel = self.rows * self.quantised.columns, True
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
        """Emit the unpacking of rows; the buffer is ``(words, steps, width, lanes)``."""
        lanes, dot = self.isa.lanes, self.isa.dot
        panel = T.alloc_buffer((self.words, self.steps, len(rows), lanes), dot.dtype)
        with loop(self.words) as k:
            for v, row in enumerate(rows):
                words = bind(row_words(self.packed, row, k, lanes))
                for step, codes in enumerate(dot.codes(words, self.packing)):
                    store(panel, codes, k, step, v, 0)
        return panel

    def _tile(self, token: Expr, height: int, rows: list[Expr], panel: Buffer | None) -> None:
        """Emit `height` tokens by the rows, from unpacked or from packed codes."""
        lanes, dot, width = self.isa.lanes, self.isa.dot, len(rows)
        if panel is None and self._has_fractions(height * width):
            self._finish(self._fractions(token, height, rows), token, rows)
            return
        # A chain of products is as slow as their latency: short tiles keep several chains.
        chains = self.chains or (2 if height * width <= CHAINS else 1)
        group = max(self.group // chains, 1)
        tiles = [Tile(height, width, lanes, dot.sum_dtype) for _ in range(chains)]
        for tile in tiles:
            tile.fill()
        with loop(self.words) as k:
            unpacked: list[list[Expr]] = []
            if panel is None:
                words = [bind(row_words(self.packed, row, k, lanes)) for row in rows]
                unpacked = [dot.codes(word, self.packing) for word in words]
            for first in range(0, self.steps, group):
                steps = range(first, min(first + group, self.steps))
                sums = tiles[first // group % chains]
                for v in range(width):
                    codes = [
                        unpacked[v][step]
                        if panel is None
                        else bind(load(panel, k, step, v, 0, lanes=lanes))
                        for step in steps
                    ]
                    for i in range(height):
                        values = [
                            self.quantised.words[token + i, k * self.steps + step] for step in steps
                        ]
                        sums[i, v] = dot.accumulate(sums[i, v], codes, values)
        for i, v in tiles[0]:
            for tile in tiles[1:]:
                tiles[0][i, v] = tiles[0][i, v] + tile[i, v]
        self._finish(tiles[0], token, rows)

    def _has_fractions(self, sums: int) -> bool:
        """Return whether :meth:`_fractions` is right and has registers for so many sums."""
        fits = 2 * sums <= MOST_FRACTIONS and self.quantised.columns <= MOST_FRACTION_COLUMNS
        return self.packing.base3 and self.isa.dot.unsigned and fits

    def _fractions(self, token: Expr, height: int, rows: list[Expr]) -> Tile:
        """Emit the products of base-3 words whose digits are never taken out.

        With ``v`` the fraction of a byte and ``v' = 3 v mod 256`` that of the digits after the
        first, the first digit is ``(3 v - v') / 256``: so two products with fractions, and one
        division at the end, stand for the unpacking of every digit.
        """
        lanes, dot, width = self.isa.lanes, self.isa.dot, len(rows)
        before, after = (Tile(height, width, lanes, dot.sum_dtype) for _ in range(2))
        before.fill()
        after.fill()

        def tripled(words: Expr) -> Expr:
            octets = T.reinterpret(f"uint8x{4 * lanes}", words)
            return bind(T.reinterpret(f"int32x{lanes}", octets + octets + octets))

        with loop(self.words) as k:
            fractions = [bind(row_words(self.packed, row, k, lanes)) for row in rows]
            for step in range(self.steps):
                following = [tripled(words) for words in fractions]
                for i, v in before:
                    value = [self.quantised.words[token + i, k * self.steps + step]]
                    before[i, v] = dot.accumulate(before[i, v], [fractions[v]], value)
                    after[i, v] = dot.accumulate(after[i, v], [following[v]], value)
                fractions = following
        three, eight = (splat(tirx.const(c, "int32"), lanes) for c in (3, 8))
        for i, v in before:
            before[i, v] = (before[i, v] * three - after[i, v]) >> eight
        return before

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
