"""A work-group's tile of a ternary product on Hopper's warpgroups: its loop over the depth.

Tokens and packed weights come to shared memory by copies that are asked for some steps ahead. The
threads unpack what the next products need while the tensor cores work, and several work-groups
share a core, so that one multiplies while another begins or ends.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, when
from .kernel import barrier, loop, registers
from .share import Share
from .vectors import LANES
from .warpgroup import (
    ATOM,
    LINE,
    STEP,
    THREADS,
    aligned,
    begin,
    close,
    close_copies,
    copy,
    multiply,
    wait,
    wait_copies,
)
from .warpgroup_tile import COLUMNS, PRODUCTS, WarpgroupTile
from .warpgroup_weights import CHUNKS, GROUPS, Weights

VECTOR = 16
"""Bytes of a vector."""
PIECES = LINE // VECTOR
"""Vectors of a token's step."""


class WarpgroupBlock:
    """The loop of a launch, for 128 threads.

    Parameters
    ----------
    tile : WarpgroupTile
        The work-groups' outputs.
    tokens : Buffer
        ``(T', bytes / 16)`` int32x4, T' a multiple of the tile's tokens.
    sums : str
        The dtype of the sums: ``"int32"`` for bytes, ``"float32"`` for 16-bit floats.
    steps : int
        The steps of 128 bytes of a token.
    """

    threads = THREADS
    columns = COLUMNS

    def __init__(self, tile: WarpgroupTile, tokens: Buffer, sums: str, steps: int) -> None:
        self.tile, self.tokens, self.dtype = tile, tokens, sums
        self.steps = steps // tile.parts

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
        self.thread, self.row, self.weights = thread, row, weights
        self.first = bind(split * self.steps)
        rows, ahead = self.tile.rows, self.tile.ahead
        self.stages, self.stage = ahead + 2, rows * PIECES + weights.vectors
        # Each stage begins with the tokens, which must begin with an atom.
        assert self.stage * VECTOR % ATOM == 0
        size = self.stages * self.stage + ATOM // VECTOR
        self.memory = T.alloc_buffer([size], f"int32x{LANES}", scope="shared.dyn")
        self.base = bind(aligned(self.memory))
        self.sums = registers([PRODUCTS * rows // 2], self.dtype)
        for i in range(PRODUCTS * rows // 2):
            T.buffer_store(self.sums, tirx.const(0, self.dtype), [i])
        self.left = registers([GROUPS * CHUNKS * PRODUCTS * LANES], "int32")
        for step in range(ahead):
            self._copy(step)
        with loop(self.steps) as step:
            wait_copies(ahead - 1)
            barrier()
            # Into the stage before the last, whose products have been waited for.
            self._copy(step + ahead)
            stage = self._stage(step)
            packed = bind(stage + rows * PIECES)
            for group in range(GROUPS):
                self._multiply(group, weights.unpack(self.memory, packed, group), stage)
                wait(1)
        wait(0)
        finish(self._share())

    def _stage(self, step: Expr) -> Expr:
        """Return the first vector of a step in shared memory."""
        return bind(self.base + step % self.stages * self.stage)

    def _multiply(self, group: int, left: list[list[list[Expr]]], stage: Expr) -> None:
        """Emit a group's products, whose left factors stay until the group after next."""
        slots = []
        for chunk in left:
            for product in chunk:
                first = (group * CHUNKS * PRODUCTS + len(slots)) * LANES
                for i, value in enumerate(product):
                    T.buffer_store(self.left, value, [first + i])
                slots.append([self.left[first + i] for i in range(LANES)])
        begin()
        for index, slot in enumerate(slots):
            chunk, product = divmod(index, PRODUCTS)
            place = stage + (group * CHUNKS + chunk) * (STEP // VECTOR)
            first = product * self.tile.rows // 2
            multiply(self.sums, first, self.tile.rows, slot, self.memory, place)
        close()

    def _copy(self, step: Expr) -> None:
        """Emit the requests for a step, if there is one, and close their group."""

        def request() -> None:
            stage, at = self._stage(step), bind(self.first + step)
            for c in range(self.tile.rows * PIECES // THREADS):
                index = bind(self.thread + c * THREADS)
                row, piece = index // PIECES, index % PIECES
                place = stage + row * PIECES + (piece ^ (row % PIECES))
                copy(self.memory, place, self.tokens, self.row + row, at * PIECES + piece)
            for c in range(self.weights.vectors // THREADS):
                index = bind(self.thread + c * THREADS)
                source, where = self.weights.source(at, index)
                copy(self.memory, stage + self.tile.rows * PIECES + index, source, *where)

        if isinstance(step, int):
            if step < self.steps:
                request()
        else:
            when(step < self.steps, request)
        close_copies()

    def _share(self) -> Share:
        """Return a thread's outputs: a vector of four, of two of every eight tokens."""
        thread, half = self.thread, self.tile.rows // 2
        vector = bind(thread // 32 * 8 + thread % 32 // LANES)
        places = [(j, e) for j in range(self.tile.rows // 8) for e in range(2)]
        rows = [bind(self.row + 8 * j + thread % LANES * 2 + e) for j, e in places]

        def sums() -> list[list[Expr]]:
            return [
                [self.sums[i * half + 4 * j + 2 * h + e] for i in range(PRODUCTS) for h in range(2)]
                for j, e in places
            ]

        return Share(vector, rows, sums, self.tile.rows, COLUMNS)


