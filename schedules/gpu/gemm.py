"""The matrix product of the graphics processors, in float32 over operands of any source.

A work-group of 64 threads owns a tile of the result. Step by step along the depth it copies both
operands' panels to shared memory, depth-major, so that each thread reads its rows and columns as
vectors of four and adds outer products in registers; the next step's panels are under way
meanwhile. Where the tiles are too few for the processor, several work-groups share the depth of one
and a second launch adds their parts in a fixed order. Without shared memory each thread fetches its
own operands. A typical use, ``y = x w^T``::

    def finish(i, j, value):
        store_vector(y, value, i, j)

    matmul(gpu, rows, columns, depth, row_major(x), row_major(w), finish)
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, static
from .gemm_block import Finish, Panel, Side, Sums, multiply, multiply_direct, undone
from .gemm_tile import Tile, plan_direct, plan_splits, plan_tile, split_count
from .kernel import Gpu, ceil_div, loop, registers, scratch
from .operand import HALF, VECTOR, Operand, depth_major, row_major, store_vector, zero_vector
from .vectors import LANES, fours
from .work import THREADS, Place, Work, launch_works

__all__ = [
    "Finish",
    "Operand",
    "Product",
    "depth_major",
    "matmul",
    "row_major",
    "store_vector",
]


def matmul(
    gpu: Gpu,
    rows: Expr,
    columns: int,
    depth: Expr,
    left: Operand,
    right: Operand,
    finish: Finish,
) -> None:
    """Emit the launches of ``finish(i, j, sum_k left(i, k) right(k, j))``; call it outside of any.

    One launch, or two and a scratch buffer where the depth is shared out. Sums have a fixed order
    that depends on the sizes alone.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    rows : PrimExpr or int
        Rows of the result, symbolic ones too.
    columns : int
        Columns of the result.
    depth : PrimExpr or int
        Terms of a sum.
    left, right : Operand
        The factors; the outer axis of the left one is the rows, of the right one the columns.
    finish : callable
        Emits what becomes of the result, see :data:`Finish`; called for each element once.
    """
    product = Product(gpu, rows, columns, depth, left, right)
    if product.splits == 1:
        launch_works([product.work(finish)])
        return
    parts = product.parts()
    launch_works([product.partial_work(product.keep(parts))])
    launch_works([product.reduction(parts, finish)])


class Product:
    """A matrix product that may share a launch with other works, see :func:`matmul`.

    Parameters
    ----------
    gpu, rows, columns, depth, left, right
        As of :func:`matmul`.
    splits : int, optional
        Into how many parts to cut the depth; by default as many as fill the processor.
    tile : Tile, optional
        The tile of a work-group, by default chosen from the sizes.
    beside : int
        Work-groups of other works in the launch.

    Attributes
    ----------
    splits : int
        The parts of the depth; each leaves a partial sum where there are several.
    """

    def __init__(
        self,
        gpu: Gpu,
        rows: Expr,
        columns: int,
        depth: Expr,
        left: Operand,
        right: Operand,
        splits: int | None = None,
        tile: Tile | None = None,
        beside: int = 0,
    ) -> None:
        self.gpu, self.left, self.right = gpu, left, right
        self.rows, self.columns, self.depth = rows, columns, depth
        if tile is None:
            widest = max((o.width for o in (left, right) if o.along_depth), default=1)
            shared = plan_tile(rows, columns, depth, widest) if gpu.shared else None
            tile = shared or plan_direct(left, right)
        for operand in (left, right):
            if operand.along_depth and tile.step % operand.width:
                raise ValueError(f"a step of {tile.step} is no whole accesses of {operand.width}")
        self.tile = tile
        self.tiles = (ceil_div(rows, self.tile.rows), ceil_div(columns, self.tile.columns))
        self.steps = ceil_div(depth, self.tile.step)
        wanted = splits or plan_splits(self.tiles, self.steps, beside)
        self.per_split = ceil_div(self.steps, wanted)
        self.splits = split_count(self.steps, wanted)

    def work(self, finish: Finish) -> Work:
        """Return the work that finishes the result.

        Raises
        ------
        ValueError
            If there are several parts: their reduction finishes them.
        """
        if self.splits != 1:
            raise ValueError(f"one work can't finish a product in {self.splits} parts")
        return self._work(lambda split: finish)

    def parts(self) -> Buffer:
        """Return scratch memory ``(splits, rows, columns)`` for the partial sums."""
        return scratch([self.splits, self.rows, self.columns])

    def keep(self, parts: Buffer) -> Callable[[Expr], Finish]:
        """Return for :meth:`partial_work` what keeps the sums in ``parts[split]``."""
        return lambda split: lambda i, j, value: store_vector(parts, value, split, i, j)

    def partial_work(self, keep: Callable[[Expr], Finish]) -> Work:
        """Return the work that computes each part of the depth; ``keep(split)`` finishes one."""
        return self._work(keep)

    def _work(self, finish: Callable[[Expr], Finish]) -> Work:
        return _StagedWork(self, finish) if self.gpu.shared else _DirectWork(self, finish)

    def reduction(self, parts: Buffer, finish: Finish) -> Work:
        """Return the work that adds the parts of each element and finishes it."""
        return _Reduction(self, parts, finish)

    def total(self, parts: Buffer, row: Expr, column: Expr) -> Expr:
        """Return the sum of the parts at `row`, of columns `column` on as :data:`Finish` gets."""
        wide = self.columns % LANES == 0
        sums = registers([1], VECTOR if wide else "float32")
        T.buffer_store(sums, zero_vector() if wide else T.float32(0.0), [0])
        source, at = (fours(parts), column // LANES) if wide else (parts, column)
        with loop(self.splits) as split:
            T.buffer_store(sums, sums[0] + source[split, row, at], [0])
        return sums[0]


class _TileWork(Work):
    """The tiles of a product; a work-group computes one, over one part of the depth."""

    def __init__(self, product: Product, finish: Callable[[Expr], Finish]) -> None:
        self.product, self.tile = product, product.tile
        self.done = lambda split: undone(product.left, product.right, finish(split))
        down, across = product.tiles
        self.groups = down * across * product.splits
        self.sums = self.tile.high * self.tile.wide // LANES

    def sides(self, group: Expr) -> tuple[Side, Side]:
        """Return both operands as a work-group sees them; tiles below each other come first."""
        product, tile = self.product, self.tile
        down, across = product.tiles
        row = bind(group % down * tile.rows)
        column = bind(group // down % across * tile.columns)
        ragged = static(product.depth) is None or product.depth % tile.step != 0
        rows = (product.left, row, product.rows, tile.rows)
        columns = (product.right, column, product.columns, tile.columns)
        return Side(*rows, product.depth, ragged, True), Side(
            *columns, product.depth, ragged, False
        )

    def split(self, group: Expr) -> Expr:
        """Return the part of the depth of a work-group."""
        down, across = self.product.tiles
        return 0 if self.product.splits == 1 else group // (down * across)

    def steps(self, group: Expr) -> tuple[Expr, Expr]:
        """Return the first step of a work-group and its number of steps."""
        product = self.product
        if product.splits == 1:
            return 0, product.steps
        first, count = self.split(group) * product.per_split, product.per_split
        if product.steps % product.per_split:
            count = T.min(product.steps - first, count)
        return first, count


class _StagedWork(_TileWork):
    """Tiles through shared memory: a turn multiplies a step and brings the next."""

    def __init__(self, product: Product, finish: Callable[[Expr], Finish]) -> None:
        super().__init__(product, finish)
        factors = product.left, product.right
        self.vectors, self.halves = (self.tile.vectors(*factors, e) for e in ("float32", HALF))

    def turns(self, group: Expr) -> Expr:
        return self.steps(group)[1]

    def _panels(self, place: Place) -> tuple[Panel, Panel]:
        left, right = self.sides(place.group)
        apart = left.operand.element != right.operand.element
        rows = Panel(left, self.tile, place, 0)
        return rows, Panel(right, self.tile, place, 0 if apart else 2 * rows.size)

    def start(self, place: Place) -> None:
        begin = bind(self.steps(place.group)[0] * self.tile.step)
        for panel in self._panels(place):
            panel.fetch(begin)
            panel.store(begin, 0)

    def turn(self, place: Place, index: Expr) -> None:
        rows, columns = self._panels(place)
        first, count = self.steps(place.group)
        # The last turn fetches its own step again: cheaper than a branch.
        following = bind((first + T.min(index + 1, count - 1)) * self.tile.step)
        rows.fetch(following)
        columns.fetch(following)
        sums = Sums(self.tile, place.thread, place.sums)
        multiply(self.tile, sums, rows, columns, bind(index % 2))
        other = bind((index + 1) % 2)
        rows.store(following, other)
        columns.store(following, other)

    def finish(self, place: Place) -> None:
        done = self.done(bind(self.split(place.group)))
        Sums(self.tile, place.thread, place.sums).finish(*self.sides(place.group), done)


class _DirectWork(_TileWork):
    """Tiles whose threads fetch their own factors."""

    def finish(self, place: Place) -> None:
        left, right = self.sides(place.group)
        sums = Sums(self.tile, place.thread, place.sums)
        first, count = self.steps(place.group)
        with loop(count) as index:
            depth = bind((first + index) * self.tile.step)
            multiply_direct(self.tile, sums, left, right, depth)
        sums.finish(left, right, self.done(bind(self.split(place.group))))


class _Reduction(Work):
    """The sums of a product's parts; a thread has four columns of a row."""

    def __init__(self, product: Product, parts: Buffer, finish: Finish) -> None:
        self.product, self.parts, self.done = product, parts, finish
        self.width = LANES if product.columns % LANES == 0 else 1
        self.across = product.columns // self.width
        self.count = product.rows * self.across
        self.groups = ceil_div(self.count, THREADS)

    def finish(self, place: Place) -> None:
        # The threads past the end repeat the last element.
        index = bind(T.min(place.group * THREADS + place.thread, self.count - 1))
        row, column = bind(index // self.across), bind(index % self.across * self.width)
        self.done(row, column, self.product.total(self.parts, row, column))
