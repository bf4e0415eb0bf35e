"""The adjoint of a group of ternary projections with their adapters.

Threads share the columns of the matrix in panels of one register tile's width. A panel's codes are
unpacked chunk by chunk of rows, scale included, to float32 that fits the first-level cache, and
serve all tokens; so the matrix is read along the axis it is not stored for without a transposed
copy. The adapters' thin products run before (u and du) and after (their gradients).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..ternary import TILE, Packing, Segment, aligned, by_segment, segments
from ..tir import Buffer, Expr, bind, build, load, loop, shape, splat, store
from .isa import Isa
from .low_rank import dot_products
from .microkernel import Tile, accumulate, row_tiles
from .ternary import row_codes

Unpack = Callable[[Buffer, Expr, Expr], None]
"""``unpack(to, row, rows)`` emits ``to[r, c] = W[row + r, column + c]`` for r below `rows`."""
CHUNK = 8
"""Packed tiles of rows in a chunk by default: with 64 columns 32 KiB of float32."""


def panels(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `bitlinear_vjp`; None where a projection is no multiple of 16 rows."""
    parts = segments(parameters)
    if not aligned(parts):
        return None
    isa, scale = Isa(target), float(parameters["lora_scale"])
    packing = Packing.of(parameters)

    def body(dy: Buffer, x: Buffer, packed: Buffer, scales: Buffer, *rest: Buffer) -> None:
        def weights(column: Expr, wide: int) -> Unpack:
            lanes = isa.lanes
            codes = [row_codes(packing, bind(column + v * lanes), lanes) for v in range(wide)]
            return lambda to, row, rows: _unpack(isa, parts, packed, scales, to, row, rows, codes)

        if len(rest) == 1:
            input_adjoint(isa, parts[-1].end, dy, rest[0], None, weights)
            return
        separate = len(rest) == 7
        a, b, lora_input = rest[0], rest[1], rest[2] if separate else x
        outputs = rest[3:] if separate else rest[2:]
        lora = Lora(isa, parts, scale, dy, lora_input, a, b)
        lora.thin_products()
        through = None if separate else lora
        input_adjoint(isa, parts[-1].end, dy, outputs[0], through, weights)
        lora.gradients(*outputs[1:])

    return build(function, body)


def input_adjoint(
    isa: Isa,
    depth: int,
    dy: Buffer,
    dx: Buffer,
    lora: Lora | None,
    weights_of: Callable[[Expr, int], Unpack],
) -> None:
    """Emit ``dx = dy W``, plus the adapters' part where they share the input.

    W has `depth` rows; ``weights_of(column, vectors)`` returns what unpacks some of its columns.
    """
    tokens, columns = shape(dx)
    lanes, (height, width) = isa.lanes, choose("tile", isa.tiles, isa.tile)
    most = choose("chunk", (2, 4, CHUNK, 16), CHUNK) * TILE

    def panel(first: Expr, wide: int) -> None:
        column = bind(first * lanes)
        unpack = weights_of(column, wide)

        def place(token: Expr) -> Callable[[int, int], tuple[Any, ...]]:
            return lambda i, v: (dx, token + i, column + v * lanes)

        def begin(token: Expr, high: int) -> None:
            sums = Tile(high, wide, lanes)
            sums.fill()
            if lora is not None:
                lora.through(sums, token, column)
            sums.store(place(token))

        def chunk(index: Expr) -> None:
            row = bind(index * most)
            rows = most
            if depth % rows:
                rows = bind(T.min(T.int64(rows), depth - row))
            weights = T.alloc_buffer((most, wide * lanes), "float32")
            unpack(weights, row, rows)

            def tile(token: Expr, high: int) -> None:
                sums = Tile(high, wide, lanes)
                # From zero, so that rounding grows with the chunk and not with all of N.
                sums.fill()
                accumulate(
                    sums,
                    rows,
                    lambda i, r: dy[token + i, row + r],
                    lambda r, v: load(weights, r, v * lanes, lanes=lanes),
                )
                sums.store(
                    place(token),
                    lambda total, i, v: (
                        total + load(dx, token + i, column + v * lanes, lanes=lanes)
                    ),
                )

            row_tiles(tokens, height, tile)

        row_tiles(tokens, height, begin)
        with loop(-(-depth // most)) as index:
            chunk(index)

    row_tiles(columns // lanes, width, panel, parallel=True)


def _unpack(
    isa: Isa,
    parts: list[Segment],
    packed: Buffer,
    scales: Buffer,
    weights: Buffer,
    row: Expr,
    rows: Expr,
    codes: list[Callable[[Buffer, Expr], Expr]],
) -> None:
    """Emit ``weights[r, c] = (scale W)[row + r, column + c]`` for r below `rows`.

    `codes` reads each vector of these columns from a row.
    """
    lanes = isa.lanes
    with loop(rows // TILE) as tile:
        first = bind(row + tile * TILE)
        scale = bind(splat(by_segment(parts, first, lambda p: scales[p.index]), lanes))
        with loop(TILE) as r:
            for v, read in enumerate(codes):
                # Exact for the codes 0, 1 and 2.
                value = T.cast(read(packed, first + r), f"float32x{lanes}") * scale - scale
                store(weights, value, tile * TILE + r, v * lanes)


class Lora:
    """The adapters' thin products, ``u = lora_scale x A^T`` and ``du = lora_scale dy B^T``."""

    def __init__(
        self,
        isa: Isa,
        parts: list[Segment],
        scale: float,
        dy: Buffer,
        x: Buffer,
        a: Buffer,
        b: Buffer,
    ) -> None:
        self.isa, self.scale, self.dy, self.x, self.a, self.b = isa, scale, dy, x, a, b
        self.adapted = [part for part in parts if part.adapter is not None]
        self.tokens, self.columns = shape(x)
        self.adapters, self.rank, _ = shape(a)
        thin = (self.tokens, self.adapters, self.rank)
        self.tile = choose("gradient tile", isa.tiles, isa.tile)
        self.u, self.du = T.alloc_buffer(thin, "float32"), T.alloc_buffer(thin, "float32")

    def thin_products(self) -> None:
        """Emit u and du."""
        for part in self.adapted:
            self._thin(part)

    def _thin(self, part: Segment) -> None:
        lanes, s, scale = self.isa.lanes, part.adapter, tirx.const(self.scale, "float32")
        dot_products(
            self.isa,
            self.tokens,
            self.rank,
            self.columns,
            lambda t, k: load(self.x, t, k, lanes=lanes),
            lambda j, k: load(self.a, s, j, k, lanes=lanes),
            lambda t, j, total: store(self.u, total * scale, t, s, j),
        )
        dot_products(
            self.isa,
            self.tokens,
            self.rank,
            part.end - part.begin,
            lambda t, n: load(self.dy, t, n + part.begin, lanes=lanes),
            lambda j, n: load(self.b, j, n + part.column, lanes=lanes),
            lambda t, j, total: store(self.du, total * scale, t, s, j),
        )

    def through(self, sums: Tile, token: Expr, column: Expr) -> None:
        """Emit ``sums[i, v] += sum_sj du[token + i, s, j] A[s, j, column + v ..]``."""
        lanes = sums.lanes
        with loop(self.adapters) as s:
            accumulate(
                sums,
                self.rank,
                lambda i, j: self.du[token + i, s, j],
                lambda j, v: load(self.a, s, j, column + v * lanes, lanes=lanes),
            )

    def gradients(self, da: Buffer, db: Buffer, dx: Buffer | None = None) -> None:
        """Emit ``dA = du^T x`` and ``dB = u^T dy``, and the adapters' input's own adjoint."""
        lanes, (height, width) = self.isa.lanes, self.tile

        def panel(first: Expr, wide: int) -> None:
            column = bind(first * lanes)

            def through(token: Expr, high: int) -> None:
                sums = Tile(high, wide, lanes)
                sums.fill()
                self.through(sums, token, column)
                sums.store(lambda i, v: (dx, token + i, column + v * lanes))

            with loop(self.adapters) as s:
                self._outer(self.du, s, self.x, column, wide, lambda j, c: (da, s, j, c))
            if dx is not None:
                row_tiles(self.tokens, height, through)

        row_tiles(self.columns // lanes, width, panel, parallel=True)
        for part in self.adapted:
            self._up_gradient(part, db)

    def _up_gradient(self, part: Segment, db: Buffer) -> None:
        """Emit the columns of dB that belong to one projection."""
        lanes, shift = self.isa.lanes, part.column - part.begin

        def panel(first: Expr, wide: int) -> None:
            row = bind(part.begin + first * lanes)
            self._outer(self.u, part.adapter, self.dy, row, wide, lambda j, n: (db, j, n + shift))

        vectors = (part.end - part.begin) // lanes
        row_tiles(vectors, self.tile[1], panel, parallel=True)

    def _outer(
        self,
        thin: Buffer,
        s: Expr,
        wide: Buffer,
        column: Expr,
        width: int,
        place: Callable[[Expr, Expr], tuple[Any, ...]],
    ) -> None:
        """Emit ``place(j, c) = sum_t thin[t, s, j] wide[t, c]``, all j, c a panel from `column`."""
        lanes = self.isa.lanes

        def tile(j: Expr, high: int) -> None:
            sums = Tile(high, width, lanes)
            sums.fill()
            accumulate(
                sums,
                self.tokens,
                lambda i, t: thin[t, s, j + i],
                lambda t, v: load(wide, t, column + v * lanes, lanes=lanes),
            )
            sums.store(lambda i, v: place(j + i, column + v * lanes))

        row_tiles(self.rank, self.tile[0], tile, overlap=True)
