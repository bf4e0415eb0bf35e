"""A work-group's tile of a product on Hopper's warpgroups: its loop over the depth.

Tokens and weights of fewer bits come to shared memory by copies that are asked for some steps
ahead. The threads unpack what the next products need while the tensor cores work, and several
work-groups share a core, so that one multiplies while another begins or ends. Where there are too
few of them, two warpgroups of each take half of every step, and add up their sums in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape, when
from .copies import close_copies, copy_vector, wait_copies
from .kernel import barrier, ceil_div, loop, registers
from .share import Share
from .vectors import LANES
from .warpgroup import (
    ATOM,
    BLOCK,
    LINE,
    STEP,
    THREADS,
    aligned,
    await_phase,
    begin,
    close,
    copy_block,
    expect,
    multiply,
    open_barrier,
    wait,
)
from .warpgroup_tile import COLUMNS, PRODUCTS, WarpgroupTile
from .warpgroup_weights import CHUNKS, GROUPS, Weights

VECTOR = 16
"""Bytes of a vector."""
PIECES = LINE // VECTOR
"""Vectors of a token's step."""


class WarpgroupBlock:
    """The loop of a launch.

    Parameters
    ----------
    tile : WarpgroupTile
        The work-groups' outputs.
    tokens : Buffer
        ``(T', bytes / 16)`` int32x4, T' a multiple of the tile's tokens, in the order of
        :func:`.warpgroup.line_place`.
    sums : str
        The dtype of the sums: ``"int32"`` for bytes, ``"float32"`` for 16-bit floats.
    steps : int
        The steps of 128 bytes of a token.
    """

    def __init__(self, tile: WarpgroupTile, tokens: Buffer, sums: str, steps: int) -> None:
        rows, vectors = shape(tokens)
        self.tokens = T.decl_buffer([rows * vectors], str(tokens.dtype), data=tokens.data)
        self.tile, self.dtype, self.every, self.steps = tile, sums, steps, steps // tile.parts

    def emit(
        self,
        thread: Expr,
        row: Expr,
        weights: Weights,
        finish: Callable[[Share], None],
        split: Expr = 0,
    ) -> None:
        """Emit the sums of the tile whose first token is `row`, inside a launch.

        ``finish(share)`` emits what becomes of them; they are of the part `split` of the depth.
        """
        self.row, self.weights = row, weights
        self.worker, self.thread = thread, bind(thread % THREADS)
        self.team = bind(thread // THREADS)
        self.first = bind(split * self.steps)
        rows, ahead = self.tile.rows, self.tile.ahead
        self.stages, self.stage = ahead + 2, rows * PIECES + weights.vectors
        # Each stage begins with the tokens, which must begin with an atom.
        assert self.stage * VECTOR % ATOM == 0
        size = self.stages * (self.stage + 1) + ATOM // VECTOR
        self.memory = T.alloc_buffer([size], f"int32x{LANES}", scope="shared.dyn")
        self.base = bind(aligned(self.memory))
        self.barriers = bind(self.base + self.stages * self.stage)
        self._open()
        self.sums = registers([PRODUCTS * rows // 2], self.dtype)
        for i in range(PRODUCTS * rows // 2):
            T.buffer_store(self.sums, tirx.const(0, self.dtype), [i])
        self.left = registers([GROUPS * CHUNKS * PRODUCTS * LANES], "int32")
        for step in range(ahead):
            if step < self.steps:
                self._copy(step)
            close_copies()
        with loop(self.steps) as step:
            await_phase(self.memory, self.barriers + step % self.stages, step // self.stages % 2)
            wait_copies(ahead - 1)
            barrier()
            # Into the stage before the last, whose products have been waited for.
            when(step + ahead < self.steps, partial(self._copy, step + ahead))
            close_copies()
            stage = self._stage(step)
            packed = bind(stage + rows * PIECES)
            for turn in range(GROUPS // self.tile.teams):
                group = turn if self.tile.teams == 1 else self.team
                left = weights.unpack(self.memory, packed, group)
                if self.tile.teams > 1:
                    # What is unpacked meanwhile takes the place of the former left factor.
                    wait(0)
                self._multiply(turn, group, left, stage)
                if self.tile.teams == 1:
                    wait(1)
        wait(0)
        finish(self._share() if self.tile.teams == 1 else self._half())

    def words(self, dtype: str) -> Buffer:
        """Return shared memory as elements of 32 bits, the first of its own at ``4 base``.

        It is free when all threads have their sums.
        """
        count, data, scope = int(self.memory.shape[0]), self.memory.data, self.memory.scope()
        return T.decl_buffer([count * LANES], dtype, data=data, scope=scope)

    def _open(self) -> None:
        """Emit the making of the barriers, one for each stage."""
        when(
            self.worker < self.stages,
            lambda: open_barrier(self.memory, self.barriers + self.worker),
        )
        barrier()

    def _stage(self, step: Expr) -> Expr:
        """Return the first vector of a step in shared memory."""
        return bind(self.base + step % self.stages * self.stage)

    def _multiply(self, turn: int, group: Expr, left: list[list[list[Expr]]], stage: Expr) -> None:
        """Emit a group's products, whose left factors stay in the registers of a turn."""
        slots: list[list[Expr]] = []
        for products in left:
            for product in products:
                first = (turn * CHUNKS * PRODUCTS + len(slots)) * LANES
                for i, value in enumerate(product):
                    T.buffer_store(self.left, value, [first + i])
                slots.append([self.left[first + i] for i in range(LANES)])
        begin()
        for index, slot in enumerate(slots):
            chunk, half = divmod(index, PRODUCTS)
            place = stage + (group * CHUNKS + chunk) * (STEP // VECTOR)
            first = half * self.tile.rows // 2
            multiply(self.sums, first, self.tile.rows, slot, self.memory, place)
        close()

    def _copy(self, step: Expr) -> None:
        """Emit the requests for a step, of the tokens and of the weights."""
        stage, at = self._stage(step), bind(self.first + step)
        done = bind(self.barriers + step % self.stages)

        def tokens() -> None:
            expect(self.memory, done, self.tile.rows * LINE)
            size = BLOCK * PIECES
            for block in range(self.tile.rows // BLOCK):
                index = ((self.row // BLOCK + block) * self.every + at) * size
                copy_block(self.memory, stage + block * size, self.tokens, index, done)

        when(self.worker == 0, tokens)
        vectors, threads = self.weights.vectors, self.tile.threads
        for c in range(ceil_div(vectors, threads)):
            index = bind(self.worker + c * threads)
            place = stage + self.tile.rows * PIECES + index
            source, where = self.weights.source(at, index)
            put = partial(copy_vector, self.memory, place, source, *where)
            if vectors % threads:
                when(index < vectors, put)
            else:
                put()

    def _share(self) -> Share:
        """Return a thread's outputs: a vector of four, of two of every eight tokens."""
        places = self._places(range(self.tile.rows // 8))
        return self._outputs(0, places, lambda: [self._four(self.sums, *place) for place in places])

    def _half(self) -> Share:
        """Emit the exchange of sums between two warpgroups; each gets those of half the tokens."""
        half = self.tile.rows // 16
        low, high = (self._places(range(half * i, half * (i + 1))) for i in range(2))
        first = self.words(self.dtype)
        base = bind(self.base * LANES + self.thread)
        barrier()
        own = registers([PRODUCTS * self.tile.rows // 4], self.dtype)
        for i, (a, b) in enumerate(zip(low, high, strict=True)):
            pairs = zip(self._four(self.sums, *a), self._four(self.sums, *b), strict=True)
            for c, (early, late) in enumerate(pairs):
                mine = tirx.Select(self.team == 0, early, late)
                other = tirx.Select(self.team == 0, late, early)
                place = (i * LANES + c) * 2 * THREADS
                T.buffer_store(own, mine, [i * LANES + c])
                T.buffer_store(first, other, [base + place + (1 - self.team) * THREADS])
        barrier()

        def sums() -> list[list[Expr]]:
            return [
                [
                    own[i * LANES + c]
                    + first[base + (i * LANES + c) * 2 * THREADS + self.team * THREADS]
                    for c in range(LANES)
                ]
                for i in range(len(low))
            ]

        return self._outputs(bind(self.team * (self.tile.rows // 2)), low, sums)

    def _places(self, eights: range) -> list[tuple[int, int]]:
        """Return a thread's tokens of some groups of eight: the group, and which of its two."""
        return [(j, e) for j in eights for e in range(2)]

    def _four(self, sums: Buffer, j: int, e: int) -> list[Expr]:
        """Return the sums of a thread's outputs for one of its tokens."""
        half = self.tile.rows // 2
        return [sums[i * half + 4 * j + 2 * h + e] for i in range(PRODUCTS) for h in range(2)]

    def _outputs(
        self, first: Expr, places: list[tuple[int, int]], sums: Callable[[], list[list[Expr]]]
    ) -> Share:
        """Return the share of a thread's tokens from `first` on."""
        begin = bind(self.row + first + self.thread % LANES * 2)
        rows = [bind(begin + 8 * j + e) for j, e in places]
        return Share(bind(self.thread // LANES), rows, sums, self.tile.rows, COLUMNS)
