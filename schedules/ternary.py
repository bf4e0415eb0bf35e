"""Packed ternary matrices and the projections stacked in them, as every target's rules see them.

A matrix is ``(N / 16, K / 16, 16)`` int32, one word for 16 columns of a row; column k of a word
sits at bit ``8 (k % 4) + 2 (k // 4)`` as the code ``W + 1``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from .tir import Expr

TILE = 16
"""Rows and columns of a packed tile."""


@dataclass(frozen=True)
class Segment:
    """One projection of a group.

    Attributes
    ----------
    index : int
        Its place in the group, and of its scale.
    begin, end : int
        Its rows of the stacked matrix.
    adapter : int or None
        Its place in the adapters' factor A, None where it has no adapter.
    column : int
        Its first column of the adapters' factor B.
    """

    index: int
    begin: int
    end: int
    adapter: int | None
    column: int


def segments(parameters: dict[str, Any]) -> list[Segment]:
    """Return the projections of a group from its kernels' static parameters."""
    found: list[Segment] = []
    row, adapter, column = 0, 0, 0
    pairs = zip(parameters["outputs"], parameters["adapted"], strict=True)
    for index, (size, adapted) in enumerate((int(s), bool(int(a))) for s, a in pairs):
        found.append(Segment(index, row, row + size, adapter if adapted else None, column))
        row += size
        if adapted:
            adapter, column = adapter + 1, column + size
    return found


def aligned(parts: list[Segment]) -> bool:
    """Return whether every projection begins with a packed tile, which the rules need."""
    return all(part.begin % TILE == 0 and part.end % TILE == 0 for part in parts)


def by_segment(parts: list[Segment], row: Expr, value: Callable[[Segment], Any]) -> Expr:
    """Select at run time ``value(segment)`` of the segment that holds a row."""
    chosen = value(parts[-1])
    for part in reversed(parts[:-1]):
        chosen = tirx.Select(row < part.end, value(part), chosen)
    return chosen
