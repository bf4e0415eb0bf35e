"""The tiles of a matrix product: how a work-group's threads divide one, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..decisions import choose_next
from ..tir import Expr, static
from .kernel import ceil_div
from .operand import Operand
from .vectors import LANES

STEP = 16
"""The depth of one step."""
GROUPS = 512
"""Work-groups that keep a large processor busy: about four on each of its 132 cores."""
PARTS = (1, 2, 4, 8, 16)
"""Into how many parts a depth may be cut, besides what is usual."""
LEAST_STEPS = 4
"""Steps below which a part of the depth costs more in sums than it gains."""


@dataclass(frozen=True)
class Tile:
    """A work-group's part of the result.

    Attributes
    ----------
    rows, columns : int
        Its extents.
    high, wide : int
        Rows and columns of a thread; it has ``rows columns / (high wide)`` threads, all 64.
    step : int
        The depth that is read at once.
    apart : bool
        Whether a thread's vectors lie apart, its neighbours' between them; else side by side.
    """

    rows: int
    columns: int
    high: int
    wide: int
    step: int = STEP
    apart: bool = True

    @property
    def threads_across(self) -> int:
        """Threads side by side."""
        return self.columns // self.wide

    @property
    def threads_down(self) -> int:
        """Threads below each other."""
        return self.rows // self.high

    def row(self, down: Expr, i: int) -> Expr:
        """Return the row of the tile that is the i-th of the threads at `down`.

        Four rows lie together if there are as many, so that one vector of shared memory has them.
        """
        if not self.apart:
            return down * self.high + i
        near = min(self.high, LANES)
        return down * near + (i // near * near * self.threads_down + i % near)

    def vector(self, across: Expr, v: int) -> Expr:
        """Return the v-th vector of four columns of the threads at `across`.

        Neighbours have neighbouring vectors, which are in different banks of shared memory.
        """
        if not self.apart:
            return across * (self.wide // LANES) + v
        return across + v * self.threads_across

    def pitch(self, operand: Operand, extent: int) -> int:
        """Return the length of a row of an operand's panel in shared memory, in vectors.

        Threads that write the same columns of several rows need the rows in different banks.
        """
        return extent // LANES + (operand.width > LANES and not operand.along_depth)

    def vectors(self, left: Operand, right: Operand, element: str = "float32") -> int:
        """Return the shared memory of a work-group, in vectors of four elements of a dtype.

        Two steps of each panel that holds such.
        """
        sides = ((left, self.rows), (right, self.columns))
        return 2 * self.step * sum(self.pitch(o, n) for o, n in sides if o.element == element)


# Half a step: a thread that stages more of it through Vulkan takes twice the time.
LARGE = Tile(128, 64, 16, 8, step=STEP // 2)
TILES = {
    16: (Tile(32, 16, 2, 4), Tile(64, 16, 4, 4)),
    32: (Tile(32, 32, 4, 4), Tile(64, 32, 8, 4)),
    64: (Tile(32, 64, 4, 8), Tile(64, 64, 8, 8), LARGE),
}
"""The tiles to decide among, by the most columns of a result that they are for."""


def plan_tile(rows: Expr, columns: int, depth: Expr, widest: int = 1) -> Tile:
    """Return the tile that is recorded for a product, or the one that :func:`_usual` says."""
    usual = _usual(rows, columns, depth, widest)
    known = next((TILES[most] for most in TILES if columns <= most), TILES[64])
    valid = {_sizes(tile): tile for tile in (usual, *known) if tile.step % widest == 0}
    return valid[choose_next("product", list(valid), _sizes(usual))]


def _sizes(tile: Tile) -> tuple[int, ...]:
    return (tile.rows, tile.columns, tile.high, tile.wide, tile.step)


def _usual(rows: Expr, columns: int, depth: Expr, widest: int) -> Tile:
    """Choose the tile of a product: the largest that the result fills and that is there often.

    `widest` are the elements of the widest access along the depth, of which a step has whole ones.

    A thread with 64 sums reads one vector of shared memory for 16 products, about what such memory
    can give while the processor multiplies; a thread with 128 sums leaves it a quarter of its time.
    """
    few = (static(rows) or 1 << 30) <= 32
    if columns <= 16:
        return Tile(32, 16, 2, 4) if few else Tile(64, 16, 4, 4)
    if columns <= 32:
        return Tile(32, 32, 4, 4) if few else Tile(64, 32, 8, 4)
    large = replace(LARGE, step=max(LARGE.step, widest))
    high, deep = static(rows), static(depth)
    if high is not None and deep is not None and -high % large.rows < large.rows // 4:
        tiles = ceil_div(high, large.rows) * ceil_div(columns, large.columns)
        if tiles * ceil_div(deep, STEP) >= 2 * GROUPS * LEAST_STEPS:
            return large
    return Tile(32, 64, 4, 8) if few else Tile(64, 64, 8, 8)


def plan_direct(left: Operand, right: Operand) -> Tile:
    """Choose the tile of a product without shared memory; operands fit it in whole fetches."""
    high = LANES if left.along_depth else max(LANES, left.width)
    wide = 2 * LANES if right.along_depth else max(2 * LANES, right.width)
    step = max(LANES, *(o.width for o in (left, right) if o.along_depth), 1)
    return Tile(8 * high, 8 * wide, high, wide, step, apart=False)


def plan_splits(tiles: tuple[Expr, Expr], steps: Expr, beside: int = 0) -> int:
    """Choose into how many parts to cut the depth; 1 where a size is symbolic.

    Parameters
    ----------
    tiles : tuple of PrimExpr or int
        Tiles down and across.
    steps : PrimExpr or int
        Steps of the depth.
    beside : int
        Work-groups of other works in the launch: one that does not find room at once starts when
        the others end, and the launch takes twice as long.
    """
    down, across, deep = (static(size) for size in (*tiles, steps))
    if down is None or across is None or deep is None:
        return 1
    room = round(GROUPS / (down * across)) if not beside else (GROUPS - beside) // (down * across)
    usual = max(1, min(room, deep // LEAST_STEPS))
    return choose_next("cut", [n for n in PARTS if n <= deep], usual)


def split_count(steps: Expr, wanted: int) -> int:
    """Return how many parts of equal length, the last maybe shorter, `wanted` ones become."""
    return 1 if wanted == 1 else ceil_div(steps, ceil_div(steps, wanted))
