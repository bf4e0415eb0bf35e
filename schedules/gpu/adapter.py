"""The adapters' part of a group's outputs: each row's projection, and ``u B``."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..ternary import Segment, by_segment
from ..tir import Buffer, Expr, bind, shape
from .kernel import loop
from .vectors import LANES, fours, only


class Up:
    """What the adapters add to four rows from `row` on, which are of one projection.

    Parameters
    ----------
    parts : list of Segment
        The projections.
    b : Buffer
        ``(r, N')`` float32.
    row : PrimExpr
        The first row, a multiple of four.
    """

    def __init__(self, parts: list[Segment], b: Buffer, row: Expr) -> None:
        self.rank = shape(b)[0]
        self.b = fours(b)
        self.plain = any(part.adapter is None for part in parts)

        def column(part: Segment) -> Expr:
            return row * 0 if part.adapter is None else row + (part.column - part.begin)

        def has(part: Segment) -> Expr:
            return tirx.const(part.adapter is not None, "bool")

        self.slot = bind(by_segment(parts, row, lambda p: tirx.const(p.adapter or 0, "int32")))
        self.column = bind(by_segment(parts, row, column) // LANES)
        self.adapted = bind(by_segment(parts, row, has)) if self.plain else None

    def factor(self, rank: Expr) -> Expr:
        """Return four elements of a row of B; zeros where the projection has no adapter."""
        return only(self.adapted, bind(self.b[rank, self.column]))


def add(sums: Buffer, ups: list[Up], u: Callable[[int, Expr, Expr], Expr], tokens: int) -> None:
    """Emit ``sums[i, v] += u(i, slot, j) B[j, four v]`` over the rank.

    Parameters
    ----------
    sums : Buffer
        ``(tokens * len(ups),)`` float32x4 registers, the rows' fours fastest.
    ups : list of Up
        Of each four rows.
    u : callable
        ``u(i, slot, j)`` is element j of the product with A of token i and an adapter.
    tokens : int
        Tokens.
    """
    with loop(ups[0].rank) as j:
        for v, up in enumerate(ups):
            factor = up.factor(j)
            for i in range(tokens):
                at = i * len(ups) + v
                value = sums[at] + T.broadcast(u(i, up.slot, j), LANES) * factor
                T.buffer_store(sums, value, [at])
