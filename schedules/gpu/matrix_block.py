"""A work-group's tile of a product on matrix units: its loop over the depth.

Step by step the work-group reads both factors into registers, writes them to one of two stages of
shared memory, in the form that the unit takes, and multiplies the other stage meanwhile. The sums
are in shared memory in the end, for whoever finishes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import MatrixUnit
from ..tir import Buffer, Expr, bind, when
from .kernel import Gpu, barrier, ceil_div, loop, registers, shared
from .matrix_tile import MatrixTile
from .matrix_unit import LEFT, RIGHT, SUM, Fragments, multiply
from .share import Share
from .vectors import LANES, held, lane

WORD = 4
"""Bytes of an int32."""


class Factor(Protocol):
    """A factor: packed words that become one or more vectors each.

    Attributes
    ----------
    rows, columns : int
        A step of it in shared memory: its rows, and the vectors of four words of a row.
    by_row : bool
        Whether the rows of a right factor are the depth; else they are the columns of the result,
        as those of a left factor are its rows.
    words : int
        Packed words of a step.
    dtype : str
        Of what is fetched of them.
    """

    rows: int
    columns: int
    by_row: bool
    words: int
    dtype: str

    def fetch(self, index: Expr, step: Expr) -> Expr:
        """Return one of a step's packed words."""

    def unpack(self, index: Expr, word: Expr) -> list[tuple[Expr, Expr, Expr]]:
        """Return the row, the column and the value of each vector that a word becomes."""


class Rows:
    """A left factor that is multiplied as memory has it.

    Parameters
    ----------
    tile : MatrixTile
        The work-groups' outputs.
    memory : Buffer
        ``(T', vectors)`` int32x4; its rows fill whole tiles.
    first : PrimExpr
        The first row of the tile.
    """

    by_row = False
    dtype = f"int32x{LANES}"

    def __init__(self, tile: MatrixTile, memory: Buffer, first: Expr) -> None:
        self.memory, self.first = memory, first
        self.rows, self.columns = tile.rows, tile.step
        self.words = self.rows * self.columns

    def fetch(self, index: Expr, step: Expr) -> Expr:
        """Return one of a step's vectors."""
        column = step * self.columns + index % self.columns
        return self.memory[self.first + index // self.columns, column]

    def unpack(self, index: Expr, word: Expr) -> list[tuple[Expr, Expr, Expr]]:
        """Return the vector as it is."""
        return [(index // self.columns, index % self.columns, bind(word))]


class MatrixBlock:
    """The loop of a launch.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    unit : MatrixUnit
        Its unit.
    tile : MatrixTile
        The work-groups' outputs.
    left : Factor
        The left factor.
    depth : int
        The packed words of a row of it.
    right : Factor
        The right factor.
    splits : int
        Into how many parts the depth is cut; a work-group has one of them.
    """

    def __init__(
        self,
        gpu: Gpu,
        unit: MatrixUnit,
        tile: MatrixTile,
        left: Factor,
        depth: int,
        right: Factor,
        splits: int = 1,
    ) -> None:
        step = tile.step
        self.unit, self.tile, self.step = unit, tile, step
        self.left, self.right = left, right
        self.threads = tile.threads(gpu.subgroup)
        self.steps = depth // (left.words // left.rows) // splits
        self.bytes = 1 if unit.factors == "int8" else 2
        # Shared memory is of vectors at which a fragment may begin.
        self.lanes = min(LANES, unit.depth * self.bytes // WORD)
        self.pieces = LANES // self.lanes
        # Rows are a vector longer than what they hold, so that neighbours begin in other banks.
        self.left_pitch = step * self.pieces + 1
        self.right_pitch = right.columns * self.pieces + 1
        self.pitch = tile.columns // self.lanes + 1
        self.stage = tile.rows * self.left_pitch + right.rows * self.right_pitch

    @property
    def vectors(self) -> int:
        """The vectors of shared memory: two steps of both factors, or a part of the result."""
        return max(2 * self.stage, self.tile.rows // self.tile.passes * self.pitch)

    def emit(
        self, thread: Expr, row: Expr, finish: Callable[[Share], None], split: Expr = 0
    ) -> None:
        """Emit the sums of the tile whose first row is `row`, inside a launch.

        ``finish(share)`` emits what becomes of them, for each part of the tile; they are of the
        part `split` of the depth.
        """
        self.thread, self.row = thread, row
        begin = bind(split * self.steps)
        self.memory = shared([self.vectors], f"int32x{self.lanes}")
        high, wide = self.tile.grid(self.unit)
        subgroup = held(T.call_pure_extern("int32", "fabric_subgroup_id"))
        self.top = bind(subgroup // self.tile.across * (high * self.unit.rows))
        self.side = bind(subgroup % self.tile.across * (wide * self.unit.columns))
        sums = Fragments(self.unit, SUM, high * wide)
        sums.clear()
        factors = self.left, self.right
        self.held = [registers([self._turns(f.words)], f.dtype) for f in factors]
        self._fetch(begin)
        self._put(0)
        barrier()
        with loop(self.steps) as index:
            # The last turn brings its own step again: cheaper than a branch.
            self._fetch(bind(begin + tirx.min(index + 1, self.steps - 1)))
            self._multiply(bind(index % 2), sums)
            self._put(bind((index + 1) % 2))
            barrier()
        height = self.tile.rows // self.tile.passes
        for part in range(self.tile.passes):
            if part:
                barrier()
            mine = self.top // height == part
            store = partial(self._store, sums, part * height)
            store() if self.tile.passes == 1 else when(mine, store)
            barrier()
            finish(self._share(part * height, height))

    def _store(self, sums: Fragments, first: int) -> None:
        """Emit the writing of a subgroup's sums to shared memory, which begins at a row."""
        high, wide = self.tile.grid(self.unit)
        for i in range(high):
            for j in range(wide):
                place = (self.top - first + i * self.unit.rows) * self.pitch
                place = place + (self.side + j * self.unit.columns) // self.lanes
                sums.store(i * wide + j, self.memory, place, self.pitch * self.lanes)

    def _share(self, first: int, height: int) -> Share:
        """Return a thread's share of the part of the tile that is in shared memory."""
        across = self.tile.columns // LANES
        apart = self.threads // across
        below, vector = bind(self.thread // across), bind(self.thread % across)
        own = [below + i * apart for i in range(height // apart)]
        return Share(
            vector,
            [bind(self.row + first + row) for row in own],
            lambda: [self._sums(row, vector) for row in own],
            self.tile.rows,
            self.tile.columns,
        )

    def _sums(self, row: Expr, vector: Expr) -> list[Expr]:
        """Return four sums of a row of the part in shared memory, as int32."""
        place = row * self.pitch + vector * self.pieces
        pieces = [bind(self.memory[place + p]) for p in range(self.pieces)]
        return [lane(piece, c) for piece in pieces for c in range(self.lanes)]

    def _turns(self, count: int) -> int:
        return ceil_div(count, self.threads)

    def _each(self, count: int, body: Callable[[int, Expr], None]) -> None:
        """Emit ``body(c, index)`` for the c-th of a thread's share of so many places."""
        for c in range(self._turns(count)):
            index = bind(self.thread + c * self.threads)
            if (c + 1) * self.threads <= count:
                body(c, index)
            else:
                when(index < count, partial(body, c, index))

    def _fetch(self, step: Expr) -> None:
        """Emit the reading of a step of both factors."""

        def read(factor: Factor, register: Buffer, c: int, index: Expr) -> None:
            T.buffer_store(register, factor.fetch(index, step), [c])

        for factor, register in zip((self.left, self.right), self.held, strict=True):
            self._each(factor.words, partial(read, factor, register))

    def _put(self, stage: Expr) -> None:
        """Emit the writing of what was read to shared memory."""
        base = bind(stage * self.stage)
        second = bind(base + self.tile.rows * self.left_pitch)

        def write(
            factor: Factor, register: Buffer, begin: Expr, pitch: int, c: int, index: Expr
        ) -> None:
            for row, column, value in factor.unpack(index, register[c]):
                self._write(begin + row * pitch + column * self.pieces, value)

        left, right = self.held
        self._each(self.left.words, partial(write, self.left, left, base, self.left_pitch))
        self._each(self.right.words, partial(write, self.right, right, second, self.right_pitch))

    def _write(self, place: Expr, vector: Expr) -> None:
        """Emit the store of four words."""
        if self.pieces == 1:
            T.buffer_store(self.memory, vector, [place])
            return
        begin = bind(place)
        for p in range(self.pieces):
            piece = tirx.Shuffle([vector], [p * self.lanes + c for c in range(self.lanes)])
            T.buffer_store(self.memory, piece, [begin + p])

    def _multiply(self, stage: Expr, sums: Fragments) -> None:
        """Emit a subgroup's products of the step in a stage."""
        unit, memory = self.unit, self.memory
        high, wide = self.tile.grid(unit)
        left, right = Fragments(unit, LEFT, high), Fragments(unit, RIGHT, wide)
        base = bind(stage * self.stage)
        second = bind(base + self.tile.rows * self.left_pitch)
        elements = self.lanes * WORD // self.bytes  # of a vector
        for depth in range(0, self.step * LANES * WORD // self.bytes, unit.depth):
            for i in range(high):
                place = base + (self.top + i * unit.rows) * self.left_pitch + depth // elements
                left.load(i, memory, place, self.left_pitch * elements, by_row=True)
            for j in range(wide):
                column = self.side + j * unit.columns
                if self.right.by_row:
                    place = second + depth * self.right_pitch + column // elements
                else:
                    place = second + column * self.right_pitch + depth // elements
                right.load(j, memory, place, self.right_pitch * elements, self.right.by_row)
            for i in range(high):
                for j in range(wide):
                    multiply(sums, i * wide + j, left, i, right, j)
