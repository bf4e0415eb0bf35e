"""The adapters' part of a group's outputs: each row's projection, and ``u B``."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..ternary import Segment, by_segment
from ..tir import Buffer, Expr, bind, shape, splat, static
from .kernel import loop
from .vectors import LANES, fours, lane, only


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


def add(sums: Buffer, ups: list[Up], down: Buffer, rows: Sequence[Expr]) -> None:
    """Emit ``sums[i, v] += down[rows[i], slot] B[:, four v]``.

    Parameters
    ----------
    sums : Buffer
        ``(tokens * len(ups),)`` float32x4 registers, the rows' fours fastest.
    ups : list of Up
        Of each four rows.
    down : Buffer
        ``(T, S', r)`` float32, the tokens' products with A.
    rows : sequence of PrimExpr
        The tokens.
    """
    # Vectors of ranks where they are whole, since loads cost more than additions do.
    rank = static(ups[0].rank)
    wide = LANES if rank is not None and rank % LANES == 0 else 1
    source = fours(down) if wide == LANES else down
    with loop(ups[0].rank // wide) as group:
        for v, up in enumerate(ups):
            factors = [up.factor(bind(group * wide + c)) for c in range(wide)]
            for i, row in enumerate(rows):
                found, at = bind(source[row, up.slot, group]), i * len(ups) + v
                total = sums[at]
                for c, factor in enumerate(factors):
                    element = found if wide == 1 else lane(found, c)
                    total = total + splat(element, LANES) * factor
                T.buffer_store(sums, total, [at])
