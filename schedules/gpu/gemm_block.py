"""What one work-group of a matrix product does: it computes a tile from two operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, lanes_of, splat, static, when
from .gemm_tile import Tile
from .kernel import ceil_div, registers
from .operand import HALF, Operand, scalars
from .vectors import LANES, four, held, lane
from .work import THREADS, Place

BANKS = 32
"""Banks of shared memory, each of a float32."""
Finish = Callable[[Expr, Expr, Expr], None]
"""``finish(i, j, value)`` takes the result at row i and columns j to j + 3 as a float32x4, j a
multiple of four; where the columns are no multiple of four a float32 at row i and column j."""


@dataclass(frozen=True)
class Side:
    """One operand as a work-group sees it.

    Attributes
    ----------
    operand : Operand
        The operand.
    begin : PrimExpr
        Its first row or column of the tile.
    extent : PrimExpr or int
        Rows or columns of the result.
    tile : int
        Rows or columns of the tile.
    depth : PrimExpr or int
        Terms of a sum.
    ragged : bool
        Whether a step may pass the end of the depth.
    masked : bool
        Whether its elements past the end of the depth become zero; one side is enough.
    """

    operand: Operand
    begin: Expr
    extent: Expr
    tile: int
    depth: Expr
    ragged: bool
    masked: bool

    def fetch(self, outer: Expr, depth: Expr) -> Expr:
        """Return what memory holds of a place of the tile, the place clamped to what exists."""
        along, width = self.operand.along_depth, self.operand.width
        outer = self.begin + outer
        if static(self.extent) is None or self.extent % self.tile:
            outer = T.min(outer, self.extent - (1 if along else width))
        if self.ragged:
            depth = T.min(depth, self.depth - (width if along else 1))
        return self.operand.fetch(outer, depth)

    def unpack(self, fetched: Expr, outer: Expr, depth: Expr) -> list[Expr]:
        """Return the elements of what :meth:`fetch` got; all are zero past the depth's end."""
        found = self.operand.unpack(fetched, self.begin + outer, depth)
        if self.ragged and self.masked:
            inside = bind(depth < self.depth)
            zero = tirx.const(0.0, self.operand.element)
            found = [T.if_then_else(inside, v, splat(zero, lanes_of(v))) for v in found]
        return found


class Sums:
    """The sums of one thread: vectors of four columns, row by row, in registers."""

    def __init__(self, tile: Tile, thread: Expr, values: Buffer) -> None:
        self.tile, self.values = tile, values
        self.across = bind(thread % tile.threads_across)
        self.down = bind(thread // tile.threads_across)
        self.wide = tile.wide // LANES

    def add(self, i: int, left: Expr, right: list[Expr]) -> None:
        """Emit the addition of a scalar times a row of vectors to row i."""
        for v, value in enumerate(right):
            index = i * self.wide + v
            T.buffer_store(self.values, self.values[index] + splat(left, LANES) * value, [index])

    def finish(self, rows: Side, columns: Side, done: Finish) -> None:
        """Emit the finish of every sum that lies in the result."""
        fits = [static(s.extent) is not None and s.extent % s.tile == 0 for s in (rows, columns)]
        for i in range(self.tile.high):
            row = bind(rows.begin + self.tile.row(self.down, i))
            for v in range(self.wide):
                column = bind(columns.begin + self.tile.vector(self.across, v) * LANES)
                value = self.values[i * self.wide + v]
                if columns.extent % LANES:
                    for c in range(LANES):
                        inside = tirx.all(row < rows.extent, column + c < columns.extent)
                        when(inside, partial(done, row, column + c, lane(value, c)))
                elif all(fits):
                    done(row, column, value)
                else:
                    inside = tirx.all(row < rows.extent, column < columns.extent)
                    when(inside, partial(done, row, column, value))


class Panel:
    """A side's elements of one step in shared memory, depth-major, two steps of them.

    Where a fetch lies along the depth its elements go to different rows. The columns of each four
    rows are permuted (exclusive or by multiples of 8) so that those writes hit different banks.
    """

    def __init__(self, side: Side, tile: Tile, place: Place, begin: int) -> None:
        operand = side.operand
        self.side, self.step, self.thread = side, tile.step, place.thread
        self.memory = place.halves if operand.element == HALF else place.memory
        self.flat, self.begin = scalars(self.memory), begin
        self.pitch = tile.pitch(operand, side.tile)
        self.size = tile.step * self.pitch
        self.permuted = operand.along_depth and operand.width == LANES and side.tile >= 16
        fetches = side.tile * tile.step // operand.width
        self.partial = fetches if fetches < THREADS else 0
        self.held = registers([ceil_div(fetches, THREADS)], operand.dtype)

    def _place(self, c: int) -> tuple[Expr, Expr]:
        """Return the outer and depth coordinate in the panel of a thread's c-th fetch."""
        operand = self.side.operand
        outer, depth = self.side.tile, self.step
        index = self.thread + c * THREADS
        if operand.width > LANES:
            # Neighbouring threads take neighbouring words.
            if operand.along_depth:
                return index % outer, index // outer * operand.width
            return index // depth * operand.width, index % depth
        if operand.along_depth:
            per = depth // operand.width
            return index // per, index % per * operand.width
        per = outer // operand.width
        return index % per * operand.width, index // per

    def _each(self, body: Callable[[int], None]) -> None:
        for c in range(int(self.held.shape[0])):
            if self.partial:
                when(self.thread < self.partial, partial(body, c))
            else:
                body(c)

    def fetch(self, depth: Expr) -> None:
        """Emit the loads of the step that begins at `depth` to registers."""

        def one(c: int) -> None:
            outer, k = self._place(c)
            T.buffer_store(self.held, self.side.fetch(outer, depth + k), [c])

        self._each(one)

    def store(self, depth: Expr, stage: Expr) -> None:
        """Emit the writes of what :meth:`fetch` got of `depth` to stage 0 or 1."""
        base = bind(stage * self.size + self.begin)

        def one(c: int) -> None:
            outer, k = (bind(place) for place in self._place(c))
            values = self.side.unpack(self.held[c], outer, depth + k)
            if self.side.operand.along_depth or self.side.operand.width == 1:
                self._scatter(base, values, outer, k)
                return
            row = bind(base + k * self.pitch + outer // LANES)
            for v, value in enumerate(values):
                T.buffer_store(self.memory, value, [row + v])

        self._each(one)

    def _scatter(self, base: Expr, values: list[Expr], outer: Expr, k: Expr) -> None:
        """Emit the writes of elements along the depth, each to a row of its own."""
        if self.permuted:
            outer = bind(outer ^ (k // LANES * 8 % min(self.side.tile, BANKS)))
        first = bind((base + k * self.pitch) * LANES + outer)
        for v, value in enumerate(values):
            for c, element in enumerate(_lanes(bind(value))):
                row = v * LANES + c
                T.buffer_store(self.flat, element, [first + row * self.pitch * LANES])

    def base(self, stage: Expr) -> Expr:
        """Return the place of a stage."""
        return bind(stage * self.size + self.begin)

    def read(self, base: Expr, k: int, near: Expr, far: int) -> Expr:
        """Return the vector `near` + `far` of row k of a stage at `base`."""
        return _float(self.memory[base + k * self.pitch + self._permuted(k, near, far, 1)])

    def read_scalar(self, base: Expr, k: int, near: Expr, far: int) -> Expr:
        """Return the element `near` + `far` of row k of a stage at `base`."""
        at = self._permuted(k, near, far, LANES)
        return _float(self.flat[(base + k * self.pitch) * LANES + at])

    def _permuted(self, k: int, near: Expr, far: int, unit: int) -> Expr:
        """Return where `near` + `far` lies in row k, in vectors (unit 1) or elements (unit 4)."""
        block = min(self.side.tile, BANKS) // LANES * unit
        mask = k // LANES * 2 * unit % block if self.permuted else 0
        if far % block:
            near, far = near + far, 0
        return (near ^ mask if mask else near) + far


def multiply(tile: Tile, sums: Sums, rows: Panel, columns: Panel, stage: Expr) -> None:
    """Emit the outer products of the step in a stage of both panels."""
    left, right = rows.base(stage), columns.base(stage)
    for k in range(tile.step):
        across = [
            columns.read(right, k, sums.across, v * tile.threads_across) for v in range(sums.wide)
        ]
        if tile.high < LANES:
            for i in range(tile.high):
                sums.add(i, rows.read_scalar(left, k, sums.down * tile.high, i), across)
            continue
        for u in range(0, tile.high, LANES):
            four = rows.read(left, k, sums.down, u // LANES * tile.threads_down)
            for c in range(LANES):
                sums.add(u + c, lane(four, c), across)


def multiply_direct(tile: Tile, sums: Sums, left: Side, right: Side, depth: Expr) -> None:
    """Emit the outer products of the step at `depth`, whose factors the thread itself fetches."""
    rows = _elements(left, tile.step, tile.high, tile.row(sums.down, 0), depth)
    columns = _elements(right, tile.step, tile.wide, tile.vector(sums.across, 0) * LANES, depth)
    for k in range(tile.step):
        across = [four(columns[k][v : v + LANES]) for v in range(0, tile.wide, LANES)]
        for i in range(tile.high):
            sums.add(i, rows[k][i], across)


def _elements(side: Side, step: int, count: int, first: Expr, depth: Expr) -> list[list[Expr]]:
    """Return ``[k][i]``, the scalars at `depth` + k of `count` places from `first` on."""
    found: list[list[Expr]] = [[None] * count for _ in range(step)]
    along, width = side.operand.along_depth, side.operand.width
    for i in range(0, count, 1 if along else width):
        for k in range(0, step, width if along else 1):
            fetched = bind(side.fetch(first + i, depth + k))
            values = side.unpack(fetched, first + i, depth + k)
            for c, element in enumerate(e for value in values for e in _lanes(_float(value))):
                found[k + c if along else k][i if along else i + c] = element
    return found


def undone(left: Operand, right: Operand, finish: Finish) -> Finish:
    """Return a finish that gets its values free of the factors' own scales."""
    if left.undo is None and right.undo is None:
        return finish

    def unscaled(i: Expr, j: Expr, value: Expr) -> None:
        lanes = lanes_of(value)
        if left.undo is not None:
            value = value * splat(left.undo(i), lanes)
        if right.undo is not None:
            columns = [right.undo(j + c) for c in range(lanes)]
            value = value * (columns[0] if lanes == 1 else four(columns))
        finish(i, j, bind(value))

    return unscaled


def _float(value: Expr) -> Expr:
    """Return a scalar or vector, float16 or float32, as float32."""
    value, lanes = bind(value), lanes_of(value)
    if not str(value.ty.dtype).startswith(HALF):
        return value
    return held(T.Cast("float32" if lanes == 1 else f"float32x{lanes}", value))


def _lanes(value: Expr) -> list[Expr]:
    """Return the elements of a scalar or vector."""
    return [value] if lanes_of(value) == 1 else [lane(value, c) for c in range(lanes_of(value))]
