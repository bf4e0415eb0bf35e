"""Two sums over each row of scores: of the exponentials, and of the adjoints they weigh."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .attention_heads import MASKED, Heads
from .attention_tiles import Products
from .kernel import barrier, loop, registers, shared
from .vectors import held


class RowStatistics:
    """Sums over the rows of tiles of scores, block after block.

    Each thread sums what its own tiles hold, without waiting for others; :meth:`finish` adds the
    threads of a row in their order.

    Parameters
    ----------
    products : Products
        The tiles.
    """

    def __init__(self, products: Products) -> None:
        self.products = products
        count = len(products.rows)
        self.top, self.sum, self.weighted = (registers([count]) for _ in range(3))
        for i in range(count):
            T.buffer_store(self.top, T.float32(MASKED), [i])
            T.buffer_store(self.sum, T.float32(0.0), [i])
            T.buffer_store(self.weighted, T.float32(0.0), [i])

    @staticmethod
    def bytes(heads: Heads, m: int, n: int) -> int:
        """Return the shared memory that is needed for tiles of ``(m, n)`` scores."""
        return 3 * 4 * m * (Products.threads_across(heads, m, n) + 1)

    def update(self, i: int, scores: list[Expr], terms: list[Expr]) -> None:
        """Emit the addition of a tile's row: scores in units of log 2, and what they weigh."""
        top = self.top[i]
        for score in scores:
            top = T.max(top, score)
        top = held(top)
        factor = held(T.exp2(self.top[i] - top))
        total, weighted = self.sum[i] * factor, self.weighted[i] * factor
        for score, term in zip(scores, terms, strict=True):
            weight = held(T.exp2(score - top))
            total, weighted = total + weight, weighted + weight * term
        T.buffer_store(self.sum, total, [i])
        T.buffer_store(self.weighted, weighted, [i])
        T.buffer_store(self.top, top, [i])

    def finish(
        self, thread: Expr, keep: Callable[[Expr, Expr, Expr], None]
    ) -> tuple[list[Expr], list[Expr]]:
        """Emit the sums over whole rows.

        Parameters
        ----------
        thread : PrimExpr
            The thread's index.
        keep : callable
            Given a row, the logarithm to base 2 of its sum of exponentials, and the mean of what
            they weigh, emits their store; one thread of each row calls it.

        Returns
        -------
        tuple of list
            The same two numbers for each row of the thread's tiles.
        """
        products = self.products
        rows, across = products.down * len(products.rows), products.across
        parts = [shared([rows, across + 1]) for _ in range(3)]
        for part, mine in zip(parts, (self.top, self.sum, self.weighted), strict=True):
            for i, row in enumerate(products.rows):
                T.buffer_store(part, mine[i], [row, products.columns[0]])
        barrier()

        def whole_row() -> None:
            logarithm, mean = self._whole_row(parts, thread)
            keep(thread, logarithm, mean)
            T.buffer_store(parts[0], logarithm, [thread, 0])
            T.buffer_store(parts[1], mean, [thread, 0])

        when(thread < rows, whole_row)
        barrier()
        first, second = ([bind(p[row, 0]) for row in products.rows] for p in parts[:2])
        return first, second

    def _whole_row(self, parts: list[Expr], row: Expr) -> tuple[Expr, Expr]:
        """Emit the sums of a row by one thread, and return their logarithm and mean."""
        across = self.products.across
        tops, sums, weighted = parts
        whole = registers([3])
        T.buffer_store(whole, T.float32(MASKED), [0])
        for k in (1, 2):
            T.buffer_store(whole, T.float32(0.0), [k])
        with loop(across) as k:
            T.buffer_store(whole, T.max(whole[0], tops[row, k]), [0])
        with loop(across) as k:
            factor = bind(T.exp2(tops[row, k] - whole[0]))
            T.buffer_store(whole, whole[1] + factor * sums[row, k], [1])
            T.buffer_store(whole, whole[2] + factor * weighted[row, k], [2])
        return bind(whole[0] + T.log2(whole[1])), bind(whole[2] / whole[1])
