"""The shared builder of the processor kernels: register tiles, vectors and row tiles.

A kernel is written straight with TVM's IR builder. The trick on which every fast one rests is
:class:`Tile`: a small local buffer that is only ever addressed at Python integers, so LLVM turns
each of its vectors into one register, and :func:`accumulate`, the Python-unrolled body of a matrix
product over such a tile. A typical kernel::

    def apply(function, parameters, target):
        isa = Isa(target)
        height, width = isa.tile

        def body(x, w, y):                       # the PrimFunc's buffers, outputs last
            with loop(columns // (width * isa.lanes), parallel=True) as block:
                column = block * width * isa.lanes

                def tile(row, height):
                    acc = Tile(height, width, isa.lanes)
                    acc.fill()
                    accumulate(acc, depth,
                               lambda i, k: x[row + i, k],
                               lambda k, v: load(w, k, column + v * isa.lanes, lanes=isa.lanes))
                    acc.store(lambda i, v: (y, row + i, column + v * isa.lanes))

                row_tiles(rows, height, tile)

        return build(function, body)

Loop variables are int64, as the shapes of Relax are. An index may be a Python int or an expression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from ..decisions import choose
from ..tir import Expr, bind, branch, loop, splat, static, store, zeros


class Tile:
    """`height` by `width` accumulator vectors that live in registers.

    Parameters
    ----------
    height, width : int
        Rows, and vectors in a row. Their product plus the operands must fit the register file;
        `Isa.tile` gives the largest.
    lanes : int
        Lanes of a vector.
    dtype : str
        Of the lanes.
    """

    def __init__(self, height: int, width: int, lanes: int, dtype: str = "float32") -> None:
        self.height, self.width, self.lanes, self.dtype = height, width, lanes, dtype
        # A buffer a row: TVM takes one of 1 KiB or more from its heap, at a call a tile.
        self.rows = [T.alloc_buffer((width * lanes,), dtype) for _ in range(height)]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over all ``(row, vector)``."""
        return ((i, v) for i in range(self.height) for v in range(self.width))

    def __getitem__(self, place: tuple[int, int]) -> Expr:
        row, vector = place
        return self.rows[row][T.ramp(vector * self.lanes, 1, self.lanes)]

    def __setitem__(self, place: tuple[int, int], value: Expr) -> None:
        row, vector = place
        at = T.ramp(vector * self.lanes, 1, self.lanes)
        T.buffer_store(self.rows[row], splat(value, self.lanes), [at])

    def fill(self, value: Callable[[int, int], Expr] | None = None) -> None:
        """Set every vector to ``value(i, v)``, or to zero."""
        zero = zeros(self.dtype, self.lanes)
        for i, v in self:
            self[i, v] = zero if value is None else value(i, v)

    def store(
        self,
        place: Callable[[int, int], tuple[Any, ...]],
        value: Callable[[Expr, int, int], Expr] | None = None,
    ) -> None:
        """Store each vector, or ``value(vector, i, v)``, to ``(buffer, *index) = place(i, v)``."""
        for i, v in self:
            buffer, *index = place(i, v)
            store(buffer, self[i, v] if value is None else value(self[i, v], i, v), *index)


def accumulate(
    tile: Tile,
    extent: Expr,
    left: Callable[[int, Expr], Expr],
    right: Callable[[Expr, int], Expr],
    begin: Expr = 0,
) -> None:
    """Emit ``tile[i, v] += left(i, r) * right(r, v)`` for r in ``range(begin, extent)``.

    `left` returns a scalar, put in every lane, for an outer-product tile; or a vector, for a
    tile of dot products whose lanes are summed afterwards with :func:`horizontal`. `right`
    returns a vector. Both are float32.
    """

    def step(r: Expr) -> None:
        rights = [bind(right(r, v)) for v in range(tile.width)]
        for i in range(tile.height):
            value = bind(splat(left(i, r), tile.lanes))
            for v in range(tile.width):
                tile[i, v] = tile[i, v] + value * rights[v]

    unroll = choose("unroll", (1, 2, 4), 1)
    done = begin
    if unroll > 1:
        turns = (extent - begin) // unroll
        with loop(turns) as turn:
            first = bind(begin + turn * unroll)
            for r in range(unroll):
                step(first + r)
        done = begin + turns * unroll
    if not (isinstance(done, int) and isinstance(extent, int) and done == extent):
        with loop(extent, begin=done) as r:
            step(r)


def row_tiles(
    rows: Expr,
    height: int,
    body: Callable[[Expr, int], None],
    parallel: bool = False,
    overlap: bool = False,
) -> None:
    """Cut rows into tiles of at most `height` and emit ``body(first_row, tile_height)`` for each.

    A static count is cut evenly, into tiles of two neighbouring heights: 128 rows by 6 are 18
    tiles of 6 and 4 of 5. A symbolic count is cut into full tiles and single rows; with `overlap`
    into full tiles of which the last moves back to end with the rows (and single rows where there
    are fewer than one tile holds). Then rows are computed twice, which `body` must bear: it may
    overwrite its outputs but not add to them.
    """
    count = static(rows)
    if count is not None:
        cut = EvenCut.of(count, height)
        with loop(cut.tiles, parallel) as i:
            cut.emit(i, body)
        return
    if height == 1:
        _single_rows(0, rows, body, parallel)
        return
    if overlap:

        def shifted() -> None:
            with loop((rows + (height - 1)) // height, parallel) as i:
                body(T.min(i * height, rows - height), height)

        branch(rows >= height, shifted, lambda: _single_rows(0, rows, body, parallel))
        return
    with loop(rows // height, parallel) as i:
        body(i * height, height)
    _single_rows(rows // height * height, rows, body, parallel)


@dataclass(frozen=True)
class EvenCut:
    """A static count of rows cut into `tiles` of two neighbouring heights.

    Attributes
    ----------
    tiles : int
        Number of tiles.
    low : int
        Rows of a tile; the first `higher` tiles have one more.
    higher : int
        How many tiles have the extra row.
    """

    tiles: int
    low: int
    higher: int

    @classmethod
    def of(cls, rows: int, height: int) -> EvenCut:
        """Cut `rows` into as few tiles of at most `height` as there can be."""
        tiles = -(-rows // height)
        return cls(tiles, *divmod(rows, max(tiles, 1)))

    def emit(self, i: Expr, body: Callable[[Expr, int], None]) -> None:
        """Emit ``body(first_row, height)`` of tile i, a branch where there are two heights."""
        if self.higher == 0:
            body(i * self.low, self.low)
        else:
            branch(
                i < self.higher,
                lambda: body(i * (self.low + 1), self.low + 1),
                lambda: body(i * self.low + self.higher, self.low),
            )


def _single_rows(begin: Expr, end: Expr, body: Callable[[Expr, int], None], parallel: bool) -> None:
    with loop(end, parallel, begin) as row:
        body(row, 1)
