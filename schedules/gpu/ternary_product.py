"""The ternary product of many tokens: a tile of outputs in the registers of every thread.

A thread reads words of four rows at once, 16 bytes beside its neighbour's, unpacks each in
registers and multiplies it with all its tokens; those all its neighbours read too. Integers are
exact in any order, so threads may share a sum's columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..ternary import TILE, Segment, by_segment
from ..tir import Buffer, Expr, bind, shape, static, when
from . import adapter
from .kernel import barrier, ceil_div, dot4, launch, loop, registers, shared
from .packed import codes
from .quantise import Tokens
from .ternary_tile import Tile
from .vectors import LANES, four, fours, lane

UNROLL = 2
"""Words of a row that are read at once: the two that share a line of cache."""
STAGED = 4
"""Tokens whose sums are exchanged at once."""


class Product:
    """One launch: the product, its scale and the adapters.

    Parameters
    ----------
    tile : Tile
        The work-groups' outputs.
    parts : list of Segment
        The projections.
    packed, scales : Buffer
        ``(N / 16, W, 16)`` int32 and ``(S,)`` float32.
    tokens : Tokens
        The tokens, padded to a multiple of the tile's and laid out for the matrix' packing.
    b : Buffer or None
        ``(r, N')`` float32.
    y : Buffer
        ``(T, N)`` float32.
    residual : Buffer, optional
        ``(T, N)`` float32, added to the result.
    """

    def __init__(
        self,
        tile: Tile,
        parts: list[Segment],
        packed: Buffer,
        scales: Buffer,
        tokens: Tokens,
        b: Buffer | None,
        y: Buffer,
        residual: Buffer | None = None,
    ) -> None:
        self.tile, self.parts, self.packed, self.scales = tile, parts, packed, scales
        self.tokens, self.b, self.y, self.residual = tokens, b, y, residual
        self.rows, self.steps = parts[-1].end, tokens.packing.words(tokens.columns)

    def emit(self) -> None:
        """Emit the launch."""
        tile = self.tile
        grid = [ceil_div(self.tokens.tokens, tile.height), ceil_div(self.rows, tile.rows)]
        with launch(grid, [tile.threads]) as (down, across, thread):
            self._place(down, across, thread)
            self.sums = registers([tile.tokens * tile.fours * LANES], "int32")
            for i in range(tile.tokens * tile.fours * LANES):
                T.buffer_store(self.sums, 0, [i])
            self._multiply()
            if tile.parts == 1:
                self._finish(tile.tokens, 0, self._own)
            else:
                self._share()

    def _place(self, down: Expr, across: Expr, thread: Expr) -> None:
        """Bind a thread's part, first token and rows."""
        tile = self.tile
        self.part = bind(thread // (tile.across * tile.down))
        self.thread = bind(thread % (tile.across * tile.down))
        side = bind(thread % tile.across)
        self.token = bind(down * tile.height + self.thread // tile.across * tile.tokens)
        first = across * tile.rows + side * LANES
        self.row = [bind(first + v * tile.across * LANES) for v in range(tile.fours)]

    def _multiply(self) -> None:
        """Emit the sums over the columns of a thread's part."""
        tile, packed, packing = self.tile, fours(self.packed), self.tokens.packing
        words = self.tokens.reader()
        clamped = self.row
        if self.rows % tile.rows:
            clamped = [bind(tirx.min(row, self.rows - LANES)) for row in self.row]
        places = [(bind(row // TILE), bind(row % TILE // LANES)) for row in clamped]

        def fetch(k: Expr) -> list[Expr]:
            return [packed[high, k, low] for high, low in places]

        def step(k: Expr, fetched: list[Expr]) -> None:
            values = [words(self.token + i, k) for i in range(tile.tokens)]
            for v, vector in enumerate(fetched):
                for c in range(LANES):
                    for f, code in enumerate(codes(lane(vector, c), packing)):
                        for i in range(tile.tokens):
                            at = (i * tile.fours + v) * LANES + c
                            total = dot4(values[i][f], code, self.sums[at])
                            T.buffer_store(self.sums, total, [at])

        self._pipeline(fetch, step)

    def _pipeline(
        self, fetch: Callable[[Expr], list[Expr]], step: Callable[[Expr, list[Expr]], None]
    ) -> None:
        """Emit the steps of a part, the words of each some steps before they are needed."""
        tile = self.tile
        stride = UNROLL * tile.parts
        whole = self.steps // stride
        if whole:
            ahead = registers([UNROLL * tile.fours], f"int32x{LANES}")

            def read(index: Expr) -> None:
                for u in range(UNROLL):
                    for v, value in enumerate(fetch(index * stride + self.part * UNROLL + u)):
                        T.buffer_store(ahead, value, [u * tile.fours + v])

            read(0)
            with loop(whole) as index:
                held = [bind(ahead[i]) for i in range(UNROLL * tile.fours)]
                read(bind(tirx.min(index + 1, whole - 1)))
                for u in range(UNROLL):
                    k = bind(index * stride + self.part * UNROLL + u)
                    step(k, held[u * tile.fours : (u + 1) * tile.fours])

        def single(k: Expr) -> None:
            step(k, [bind(value) for value in fetch(k)])

        for begin in range(whole * stride, self.steps, tile.parts):
            k = bind(begin + self.part)
            if begin + tile.parts <= self.steps:
                single(k)
            else:
                when(k < self.steps, partial(single, k))

    def _own(self, i: int, v: int) -> list[Expr]:
        """Return a thread's own four sums."""
        at = (i * self.tile.fours + v) * LANES
        return [self.sums[at + c] for c in range(LANES)]

    def _share(self) -> None:
        """Emit the exchange of the parts' sums; each part finishes some of the tokens."""
        tile = self.tile
        side, staged = tile.across * tile.down, min(STAGED, tile.parts, tile.tokens)
        memory = shared([staged * tile.fours * tile.parts * side], f"int32x{LANES}")

        def place(i: Expr, v: int, part: Expr) -> Expr:
            return ((i * tile.fours + v) * tile.parts + part) * side + self.thread

        def collected(_: int, v: int) -> list[Expr]:
            values = [bind(memory[place(self.part, v, p)]) for p in range(tile.parts)]
            return [sum((lane(x, c) for x in values[1:]), lane(values[0], c)) for c in range(LANES)]

        for begin in range(0, tile.tokens, staged):
            if begin:
                barrier()
            for i in range(staged):
                for v in range(tile.fours):
                    value = four(self._own(begin + i, v), "int32")
                    T.buffer_store(memory, value, [place(i, v, self.part)])
            barrier()
            finish = partial(self._finish, 1, self.part + begin, collected)
            if staged < tile.parts:
                when(self.part < staged, finish)
            else:
                finish()

    def _finish(self, count: int, offset: Expr, own: Callable[[int, int], list[Expr]]) -> None:
        """Emit scale, adapters and store of `count` of the thread's tokens from `offset` on."""
        tile, tokens = self.tile, self.tokens
        first, out = bind(self.token + offset), registers([count * tile.fours], f"float32x{LANES}")
        scales = [bind(by_segment(self.parts, r, lambda p: self.scales[p.index])) for r in self.row]
        for i in range(count):
            total, step = bind(tokens.sum[first + i]), bind(tokens.step[first + i])
            for v in range(tile.fours):
                exact = four([T.cast(s - total, "float32") for s in own(i, v)])
                T.buffer_store(
                    out, exact * T.broadcast(step * scales[v], LANES), [i * tile.fours + v]
                )
        if self.b is not None:
            inside = [tirx.min(r, self.rows - LANES) for r in self.row]
            ups = [adapter.Up(self.parts, self.b, bind(r)) for r in inside]
            adapter.add(out, ups, tokens.down, [first + i for i in range(count)])
        self._store(first, count, out)

    def _store(self, first: Expr, count: int, out: Buffer) -> None:
        """Emit the store of the outputs that exist."""
        tile, y, total = self.tile, fours(self.y), shape(self.y)[0]
        for i in range(count):
            for v, row in enumerate(self.row):
                put = partial(self._put, y, [first + i, row // LANES], out[i * tile.fours + v])
                conditions = []
                if static(total) is None or total % tile.height:
                    conditions.append(first + i < total)
                if self.rows % tile.rows:
                    conditions.append(row < self.rows)
                if conditions:
                    when(tirx.all(*conditions), put)
                else:
                    put()

    def _put(self, y: Buffer, place: list[Expr], value: Expr) -> None:
        """Emit the store of an output, with the residual where there is one."""
        if self.residual is not None:
            value = value + fours(self.residual)[place[0], place[1]]
        T.buffer_store(y, value, place)
