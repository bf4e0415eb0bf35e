"""The tiles of a ternary product: which outputs a thread sums, and how threads are laid out."""

from __future__ import annotations

from dataclasses import dataclass

from ..decisions import choose_next
from ..tir import Expr, static
from .kernel import Gpu, ceil_div
from .vectors import LANES

WARP = 32
"""Threads that run together on NVIDIA's processors, which are the largest."""
LARGE_CORES = 132
"""Cores to share work-groups among there, as many as an H200 has."""
SMALL_CORES = 32
"""The same of other devices: more than phones have, and about as many as graphics cards."""


@dataclass(frozen=True)
class Tile:
    """A work-group's part of the outputs.

    Attributes
    ----------
    tokens : int
        Tokens of a thread.
    fours : int
        Times four rows of a thread.
    across : int
        Threads side by side along the rows: they read neighbouring words, and the same tokens.
    down : int
        Threads below each other along the tokens.
    parts : int
        Threads that share the sums of the same outputs.
    cost : float
        Time for an output, relative to the best tile's. Loads overlap with products, so it grows
        little with them: 4 (tokens + fours) of 16 bytes for 16 tokens fours of four products.
    """

    tokens: int
    fours: int
    across: int
    down: int
    parts: int
    cost: float = 1.0

    @property
    def threads(self) -> int:
        """Threads of a work-group."""
        return self.across * self.down * self.parts

    @property
    def rows(self) -> int:
        """Rows of a work-group."""
        return self.across * self.fours * LANES

    @property
    def height(self) -> int:
        """Tokens of a work-group."""
        return self.down * self.tokens


WIDE = (
    Tile(tokens=8, fours=2, across=32, down=8, parts=1, cost=1.0),
    Tile(tokens=8, fours=1, across=32, down=4, parts=2, cost=1.05),
    Tile(tokens=8, fours=1, across=32, down=2, parts=4, cost=1.1),
    Tile(tokens=4, fours=1, across=32, down=1, parts=8, cost=1.25),
)
"""For devices whose memory within a work-group is fast. The larger a tile, the fewer loads a
product needs; the more parts, the more threads there are for the same outputs."""
NARROW = (Tile(tokens=4, fours=1, across=16, down=4, parts=1),)
"""For devices with few registers and slow memory within a work-group."""
PROMPT = 16
"""Tokens of a work-group where their number is not known: prompts have tens to hundreds."""


def is_large(gpu: Gpu) -> bool:
    """Return whether a device is of the kind that has a hundred cores and a fast cache."""
    limits = gpu.target.limits
    return limits is not None and limits.subgroup == WARP


def cores(gpu: Gpu) -> int:
    """Return among how many cores to share a launch."""
    return LARGE_CORES if is_large(gpu) else SMALL_CORES


def choose(gpu: Gpu, tokens: Expr, rows: int) -> Tile:
    """Return the tile for a number of tokens, static or not, and rows.

    It is the recorded one, or the quickest as estimated.

    A launch lasts as long as the core with the most work-groups.
    """
    wide = [tile for tile in WIDE if tile.threads <= gpu.threads]
    tiles = wide if gpu.shared and wide else list(NARROW)
    count, available = static(tokens), cores(gpu)

    def recorded(usual: Tile) -> Tile:
        sizes: dict[tuple[int, ...], Tile] = {
            (t.tokens, t.fours, t.across, t.down, t.parts): t for t in tiles
        }
        names = {tile: name for name, tile in sizes.items()}
        return sizes[choose_next("dots", list(sizes), names[usual])]

    if count is None:
        return recorded(next((tile for tile in tiles if tile.height <= PROMPT), tiles[-1]))

    def time(tile: Tile) -> float:
        across, down = ceil_div(rows, tile.rows), ceil_div(count, tile.height)
        area = tile.height * tile.rows
        return ceil_div(across * down, available) * area * tile.cost

    return recorded(min(tiles, key=time))
