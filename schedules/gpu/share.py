"""A thread's share of a tile of a product: what becomes of the sums is written in terms of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, shape, static, when
from .vectors import LANES


class Share:
    """A vector of four columns of some rows.

    Parameters
    ----------
    vector : PrimExpr
        Its vector of the tile's rows.
    rows : list of PrimExpr
        Its rows of the result.
    sums : callable
        Returns the four sums of each row, as the units give them.
    height, width : int
        The tile's rows and columns.
    """

    def __init__(
        self,
        vector: Expr,
        rows: list[Expr],
        sums: Callable[[], list[list[Expr]]],
        height: int,
        width: int,
    ) -> None:
        self.vector, self.rows, self.sums = vector, rows, sums
        self._height, self._width = height, width

    def converted(self, four: Callable[[list[Expr]], list[Expr]]) -> Share:
        """Return this share with each four sums as a function makes them."""
        rest = self._height, self._width
        return Share(self.vector, self.rows, lambda: [four(s) for s in self.sums()], *rest)

    def store(self, y: Buffer, column: Expr, values: Buffer, *part: Expr) -> None:
        """Emit the store of the vectors at a column of a ``(T, N)`` float32x4 buffer.

        With `part` the buffer is one of ``(parts, T, N)``.
        """
        *_, total, width = shape(y)
        for i, row in enumerate(self.rows):
            put = partial(T.buffer_store, y, values[i], [*part, row, column])
            conditions = []
            if static(total) is None or total % self._height:
                conditions.append(row < total)
            if width * LANES % self._width:
                conditions.append(column < width)
            if conditions:
                when(tirx.all(*conditions), put)
            else:
                put()
