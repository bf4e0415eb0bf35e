"""The tiles of a product on matrix units: a work-group's part of it, and its subgroups' parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...targets import MatrixUnit
from ..decisions import choose_next
from .kernel import Gpu, ceil_div
from .ternary_tile import cores
from .vectors import LANES


@dataclass(frozen=True)
class MatrixTile:
    """A work-group's part of the result.

    Attributes
    ----------
    rows, columns : int
        Its extents.
    down, across : int
        The subgroups below each other and side by side that share it.
    step : int
        Vectors of four words of a row of a factor that are in shared memory at once, at most.
    cost : float
        Time for an output, relative to the others', as measured on an H200.
    passes : int
        In how many parts the result goes through shared memory; they divide `down`.
    """

    rows: int
    columns: int
    down: int
    across: int
    step: int
    cost: float
    passes: int = 1

    def grid(self, unit: MatrixUnit) -> tuple[int, int]:
        """Return a subgroup's fragments below each other and side by side."""
        return self.rows // self.down // unit.rows, self.columns // self.across // unit.columns

    def threads(self, subgroup: int) -> int:
        """Return the threads of a work-group."""
        return self.down * self.across * subgroup

    def fitted(self, vectors: int, elements: int, unit: MatrixUnit) -> MatrixTile | None:
        """Return this tile with the largest step that divides a row; None where there is none.

        Parameters
        ----------
        vectors, elements : int
            The vectors of a row, and the elements of one.
        unit : MatrixUnit
            Whose depth a step is a multiple of.
        """
        step = self.step
        while step and (vectors % step or step * elements % unit.depth):
            step //= 2
        return replace(self, step=step) if step else None

    @property
    def memory(self) -> int:
        """The bytes of shared memory: two steps of both factors, or a part of the result.

        Rows are a vector longer than what they hold, so that neighbours begin in different banks.
        """
        factors = 2 * (self.rows + self.columns) * (self.step + 1)
        return VECTOR * max(factors, self.rows // self.passes * (self.columns // LANES + 1))


VECTOR = 16
"""Bytes of a vector of four words."""
SPLITS = (1, 2, 4, 8)
"""Into how many parts the depth may be cut, each with work-groups of its own."""
SUM_COST = 1.4
"""Time to write and read a part's sum, in terms of an output of a tile of cost 1."""
TILES = {
    "int8": (
        MatrixTile(128, 128, 2, 4, step=4, cost=0.7, passes=2),
        MatrixTile(64, 128, 2, 2, step=4, cost=0.9),
        MatrixTile(64, 64, 2, 2, step=8, cost=1.0),
        MatrixTile(64, 32, 2, 2, step=8, cost=1.55),
        MatrixTile(32, 32, 2, 1, step=8, cost=1.6),
    ),
    "float16": (
        MatrixTile(128, 128, 2, 4, step=4, cost=0.7, passes=2),
        MatrixTile(64, 128, 2, 4, step=4, cost=0.93),
        MatrixTile(64, 64, 2, 2, step=4, cost=0.86),
        MatrixTile(64, 32, 2, 2, step=8, cost=1.55),
        MatrixTile(32, 32, 2, 1, step=8, cost=1.6),
    ),
}
"""By the dtype of the factors. The larger a tile, the less of them is read for a product."""


def choose(
    gpu: Gpu,
    unit: MatrixUnit,
    rows: int,
    columns: int,
    vectors: int,
    elements: int,
    splits: tuple[int, ...] = (1,),
) -> tuple[MatrixTile, int] | None:
    """Return the tile and the number of parts of the depth, None where no tile fits the device.

    They are the recorded ones, or those that are quickest as estimated.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    unit : MatrixUnit
        Its unit.
    rows, columns : int
        Of the result.
    vectors, elements : int
        The vectors of four words of a row of a factor, and the elements of one.
    splits : tuple of int
        The numbers of parts to choose from; only those of equal parts are taken.
    """
    limits = gpu.target.limits
    if limits is None or not limits.subgroup or not gpu.shared:
        return None

    def fits(tile: MatrixTile) -> bool:
        inside = tile.threads(limits.subgroup) <= limits.max_threads
        return inside and tile.memory <= limits.shared_bytes and all(tile.grid(unit))

    def time(plan: tuple[MatrixTile, int]) -> float:
        tile, parts = plan
        groups = ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns) * parts
        terms = vectors * elements // parts
        products = ceil_div(groups, cores(gpu)) * tile.rows * tile.columns * tile.cost * terms
        return products + (parts > 1) * SUM_COST * parts * rows * columns

    fitted = [tile.fitted(vectors, elements, unit) for tile in TILES[unit.factors]]
    plans = [
        (tile, parts)
        for tile in fitted
        if tile and fits(tile)
        for parts in splits
        if vectors // tile.step % parts == 0
    ]
    if not plans:
        return None
    named: dict[tuple[int, ...], tuple[MatrixTile, int]] = {
        (tile.rows, tile.columns, parts): (tile, parts) for tile, parts in plans
    }
    tile, parts = min(plans, key=time)
    return named[choose_next("units", list(named), (tile.rows, tile.columns, parts))]
