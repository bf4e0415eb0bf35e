"""The tiles of a product on Hopper's warpgroups: outputs of the weights by tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..decisions import choose as decide
from ..tir import Expr, static
from .kernel import ceil_div
from .matrix_tile import SPLITS
from .ternary_tile import LARGE_CORES
from .warpgroup import LINE, ROWS, THREADS

PRODUCTS = 2
"""Products of 64 rows side by side in a work-group's tile: a thread has four adjacent outputs."""
COLUMNS = PRODUCTS * ROWS
"""Outputs of a work-group."""
TEAMS = (1, 2)
"""Warpgroups of a work-group."""
AHEAD = (2, 4, 6)
"""Steps that are on their way while one is multiplied."""
TOKEN_CYCLES = {64: 4.6, 128: 4.0}
"""Cycles of a core's tensor units for a step of a token with all outputs, by the tile's tokens."""
ALONE_CYCLES = {64: 650.0, 128: 1000.0}
"""Cycles for a step of a work-group that has a core to itself: it waits for what it unpacks."""
TOGETHER = {64: 4, 128: 2}
"""Work-groups that a core has room for."""
AROUND_CYCLES = 5000
"""Cycles until a work-group multiplies, and from its last product until its results are stored."""
SUM_CYCLES = 0.004
"""Cycles of the whole device to write and read a part's sum of an output."""


@dataclass(frozen=True)
class WarpgroupTile:
    """A work-group's part of the result.

    Attributes
    ----------
    rows : int
        Its tokens.
    parts : int
        Into how many parts the depth is cut, each with work-groups of its own.
    ahead : int
        Steps that are on their way while one is multiplied.
    teams : int
        Warpgroups that share the work.
    """

    rows: int
    parts: int
    ahead: int
    teams: int

    @property
    def threads(self) -> int:
        """Threads of a work-group."""
        return self.teams * THREADS


def choose(
    tokens: Expr,
    outputs: int,
    depth: int,
    most_parts: int = 1,
    name: str = "tile",
    most_teams: int = max(TEAMS),
) -> WarpgroupTile | None:
    """Return the tile that is quickest as estimated, or as recorded; None where none fits.

    Parameters
    ----------
    tokens : PrimExpr or int
        T; a number that stands for it where it is symbolic.
    outputs : int
        Columns of the result.
    depth : int
        Bytes of a token, which must be a multiple of 128.
    most_parts : int
        Into how many parts the depth may be cut.
    name : str
        Of the decision.
    most_teams : int
        The largest number of warpgroups.
    """
    count = static(tokens)
    if depth % LINE or count is None:
        return None
    steps = depth // LINE

    def time(plan: tuple[int, int]) -> float:
        rows, parts = plan
        groups = ceil_div(count, rows) * ceil_div(outputs, COLUMNS) * parts
        turns = ceil_div(groups, LARGE_CORES)
        together = min(turns, TOGETHER[rows])
        step = max(ALONE_CYCLES[rows], TOKEN_CYCLES[rows] * rows * together)
        products = ceil_div(turns, together) * steps // parts * step
        return products + AROUND_CYCLES + (parts > 1) * SUM_CYCLES * parts * count * outputs

    parts = [p for p in SPLITS if p <= most_parts and steps % p == 0]
    plans = [(rows, part) for rows in TOGETHER for part in parts]
    rows, part = decide(name, plans, min(plans, key=time))
    # Many work-groups hide each other's waiting; few have the shared memory to themselves.
    alone = ceil_div(count, rows) * ceil_div(outputs, COLUMNS) * part <= 2 * LARGE_CORES
    ahead = decide(f"ahead, {name}", AHEAD, 6 if alone else 2)
    # A cut depth has work-groups enough; adding up two warpgroups' sums would only cost.
    few = alone and most_parts == 1 and rows == min(TOGETHER)
    valid = [teams for teams in TEAMS if teams <= most_teams]
    teams = decide(f"teams, {name}", valid, valid[-1] if few else 1)
    return WarpgroupTile(rows, part, ahead, teams)
