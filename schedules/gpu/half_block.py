"""A work-group's tile of a product of 16-bit floats on matrix units, from panels of any source.

As in `matrix_block.py` a step of both factors is read into registers while the step before is
multiplied, and written to the other of two stages of shared memory. Here either factor's 16-byte
loads may become several vectors on the way, with factors of their own; the sums are handed on row
by row, a row to a subgroup, so that it can combine what a row holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import MatrixUnit
from ..tir import Expr, bind, when
from .kernel import Gpu, barrier, ceil_div, loop, registers, shared
from .matrix_tile import MatrixTile
from .matrix_unit import LEFT, RIGHT, SUM, Fragments, multiply
from .vectors import LANES, held, lane

EIGHT = 8
"""16-bit floats of a vector of four words."""
WORDS = "int32x4"
"""Such a vector, in which 16-bit floats travel."""


class Panel(Protocol):
    """A step of one factor.

    Attributes
    ----------
    rows, vectors : int
        It in shared memory: its rows, and the vectors of eight 16-bit floats of one.
    along_depth : bool
        Whether a row runs along the depth; else along the outer axis, and rows are the depth.
    loads : int
        Places from which a step is read.
    dtypes : sequence of str
        What is read from one.
    """

    rows: int
    vectors: int
    along_depth: bool
    loads: int
    dtypes: Sequence[str]

    def fetch(self, index: Expr, step: Expr) -> list[Expr]:
        """Return what is at one of a step's places."""

    def unpack(self, index: Expr, found: list[Expr]) -> list[tuple[Expr, Expr, Expr]]:
        """Return the row, the vector of it and the value of each vector that it becomes."""


class _Stage:
    """A panel's registers, and its part of shared memory."""

    def __init__(self, panel: Panel, threads: int, thread: Expr, begin: int, role: str) -> None:
        self.panel, self.threads, self.thread = panel, threads, thread
        self.begin, self.left = begin, role == LEFT
        self.turns = ceil_div(panel.loads, threads)
        # A vector more than what a row holds, so that neighbours begin in other banks.
        self.pitch = panel.vectors + 1
        self.held = [registers([self.turns], dtype) for dtype in panel.dtypes]

    @property
    def size(self) -> int:
        """Vectors of a stage."""
        return self.panel.rows * self.pitch

    def _each(self, body: Callable[[int, Expr], None]) -> None:
        """Emit ``body(c, index)`` for the c-th of a thread's places."""
        for c in range(self.turns):
            index = bind(self.thread + c * self.threads)
            if (c + 1) * self.threads <= self.panel.loads:
                body(c, index)
            else:
                when(index < self.panel.loads, partial(body, c, index))

    def fetch(self, step: Expr) -> None:
        """Emit the reading of a step."""

        def read(c: int, index: Expr) -> None:
            for register, value in zip(self.held, self.panel.fetch(index, step), strict=True):
                T.buffer_store(register, value, [c])

        self._each(read)

    def put(self, memory: Expr, stage: Expr) -> None:
        """Emit the writing of what was read to a stage that begins there."""

        def write(c: int, index: Expr) -> None:
            found = [bind(register[c]) for register in self.held]
            for row, vector, value in self.panel.unpack(index, found):
                place = stage + self.begin + row * self.pitch + vector
                T.buffer_store(memory, value, [place])

        self._each(write)

    def load(
        self, fragments: Fragments, i: int, memory: Expr, stage: Expr, outer: Expr, depth: int
    ) -> None:
        """Emit the reading of a fragment at an outer coordinate and a depth of the step."""
        if self.panel.along_depth:
            row, element, by_row = outer, depth, self.left
        else:
            row, element, by_row = depth, outer, not self.left
        place = stage + self.begin + row * self.pitch + element // EIGHT
        fragments.load(i, memory, place, self.pitch * EIGHT, by_row)


class HalfBlock:
    """The loop of a launch.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    unit : MatrixUnit
        Its unit of 16-bit floats, whose fragments' rows are whole vectors of eight.
    tile : MatrixTile
        The work-groups' outputs.
    left, right : Panel
        The factors.
    """

    def __init__(
        self, gpu: Gpu, unit: MatrixUnit, tile: MatrixTile, left: Panel, right: Panel
    ) -> None:
        self.unit, self.tile = unit, tile
        self.panels = left, right
        self.subgroup = gpu.subgroup
        self.threads = tile.threads(gpu.subgroup)
        self.pitch = tile.columns // LANES + 1

    def emit(
        self, thread: Expr, begin: Expr, steps: Expr, finish: Callable[[RowShare], None]
    ) -> None:
        """Emit the sums over so many steps from `begin` on, one at least, inside a launch.

        ``finish(share)`` emits what becomes of them, for each part of the tile.
        """
        tile, unit = self.tile, self.unit
        left = _Stage(self.panels[0], self.threads, thread, 0, LEFT)
        right = _Stage(self.panels[1], self.threads, thread, left.size, RIGHT)
        size = left.size + right.size
        height = tile.rows // tile.passes
        self.memory = shared([max(2 * size, height * self.pitch)], WORDS)
        high, wide = tile.grid(unit)
        subgroup = held(T.call_pure_extern("int32", "fabric_subgroup_id"))
        top = bind(subgroup // tile.across * (high * unit.rows))
        side = bind(subgroup % tile.across * (wide * unit.columns))
        sums = Fragments(unit, SUM, high * wide)
        sums.clear()

        def fetch(step: Expr) -> None:
            left.fetch(step)
            right.fetch(step)

        def put(stage: Expr) -> None:
            left.put(self.memory, stage)
            right.put(self.memory, stage)

        fetch(bind(begin))
        put(0)
        barrier()
        with loop(steps) as index:
            # The last turn brings its own step again: cheaper than a branch.
            fetch(bind(begin + tirx.min(index + 1, steps - 1)))
            self._multiply(left, right, bind(index % 2 * size), sums, top, side)
            put(bind((index + 1) % 2 * size))
            barrier()
        for part in range(tile.passes):
            if part:
                barrier()
            store = partial(self._store, sums, bind(top - part * height), side)
            store() if tile.passes == 1 else when(top // height == part, store)
            barrier()
            finish(RowShare(self, subgroup, part * height, height))

    def _multiply(
        self, left: _Stage, right: _Stage, stage: Expr, sums: Fragments, top: Expr, side: Expr
    ) -> None:
        """Emit a subgroup's products of the step in a stage."""
        unit = self.unit
        high, wide = self.tile.grid(unit)
        lefts, rights = Fragments(unit, LEFT, high), Fragments(unit, RIGHT, wide)
        for depth in range(0, self.tile.step * EIGHT, unit.depth):
            for i in range(high):
                left.load(lefts, i, self.memory, stage, top + i * unit.rows, depth)
            for j in range(wide):
                right.load(rights, j, self.memory, stage, side + j * unit.columns, depth)
            for i in range(high):
                for j in range(wide):
                    multiply(sums, i * wide + j, lefts, i, rights, j)

    def _store(self, sums: Fragments, top: Expr, side: Expr) -> None:
        """Emit the writing of a subgroup's sums to shared memory, from a row of it on."""
        high, wide = self.tile.grid(self.unit)
        for i in range(high):
            for j in range(wide):
                row, column = top + i * self.unit.rows, side + j * self.unit.columns
                place = row * self.pitch + column // LANES
                sums.store(i * wide + j, self.memory, place, self.pitch * LANES)


class RowShare:
    """A thread's share of a part of a tile: a subgroup has whole rows, its threads four columns.

    Attributes
    ----------
    lane : PrimExpr
        The thread's place in its subgroup.
    rows : list of PrimExpr
        Its rows, counted from the tile's first.
    turns : int
        Vectors of four columns that it has of each row, a subgroup apart.
    """

    def __init__(self, block: HalfBlock, subgroup: Expr, first: int, height: int) -> None:
        self.block = block
        apart = block.threads // block.subgroup
        self._below = [subgroup + i * apart for i in range(height // apart)]
        self.rows = [bind(first + row) for row in self._below]
        self.lane = held(T.call_pure_extern("int32", "fabric_subgroup_lane"))
        self.turns = block.tile.columns // LANES // block.subgroup

    def vector(self, turn: int) -> Expr:
        """Return the place in a row of one of the thread's vectors."""
        return self.lane + turn * self.block.subgroup

    def sums(self, i: int, turn: int = 0) -> list[Expr]:
        """Return four sums of the i-th row, float32."""
        place = self._below[i] * self.block.pitch + self.vector(turn)
        words = bind(self.block.memory[place])
        return [bind(T.reinterpret("float32", lane(words, c))) for c in range(LANES)]
