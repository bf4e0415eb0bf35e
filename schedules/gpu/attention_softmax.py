"""Attention of a block of queries to blocks of keys that stream past it, by a running softmax.

What was summed so far is scaled whenever the largest score of a row grows (Milakov and Gimelshein
2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135), so that the scores of a row are never in
memory.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .attention_heads import LOG2_E, MASKED, Heads, Operand, Rows, first_fit
from .attention_tiles import Mixture, Products, Weights
from .attention_vectors import extract
from .kernel import barrier, loop, registers, shared
from .vectors import held

SMALL_BLOCKS = ((16, 32), (16, 16), (16, 8))
"""Queries and keys of a block, the first that fits into shared memory, where work is scarce: a
single short row has to keep a whole device busy."""
LARGE_BLOCKS = ((64, 32), (64, 16), (32, 32), (32, 16), *SMALL_BLOCKS)
"""The same for long rows: what a thread reads of shared memory serves more products."""


class Softmax:
    """The running softmax of ``m`` rows of scores that come ``n`` at a time.

    Neighbouring threads share a row: each finds the largest score of it, and takes every S-th of
    the exponentials. Barriers must part what its methods do from each other.

    Attributes
    ----------
    weights : Weights
        The scores, in units of log 2; after :meth:`update` their exponentials less the largest.
    """

    def __init__(self, heads: Heads, thread: Expr, m: int, n: int) -> None:
        self.weights = Weights(m, n)
        self.share = min(heads.threads // m, n)
        self.row, self.place = bind(thread // self.share), bind(thread % self.share)
        self.busy = self.share * m == heads.threads
        self.factors = shared([m])
        self.top, self.sum = registers([1]), registers([1])
        T.buffer_store(self.top, T.float32(MASKED), [0])
        T.buffer_store(self.sum, T.float32(0.0), [0])

    def _when_busy(self, body: Callable[[], None]) -> None:
        body() if self.busy else when(self.row < self.weights.rows, body)

    def update(self) -> None:
        """Emit the exponentials of a block, and the factor on what was summed before it."""
        self._when_busy(self._raise_top)
        barrier()
        self._when_busy(self._weigh)

    def _raise_top(self) -> None:
        top = self.top[0]
        for k in range(self.weights.n // 4):
            vector = bind(self.weights.vector(self.row, k))
            for lane in range(4):
                top = T.max(top, extract(vector, lane, 4))
        top = held(top)
        factor = held(T.exp2(self.top[0] - top))
        T.buffer_store(self.sum, self.sum[0] * factor, [0])
        T.buffer_store(self.top, top, [0])
        when(self.place == 0, lambda: T.buffer_store(self.factors, factor, [self.row]))

    def _weigh(self) -> None:
        total = self.sum[0]
        for k in range(self.weights.n // self.share):
            column = bind(self.place + k * self.share)
            weight = bind(T.exp2(self.weights.scalars[self.row, column] - self.top[0]))
            self.weights.store(weight, self.row, column)
            total = total + weight
        T.buffer_store(self.sum, total, [0])

    def finish(self) -> None:
        """Emit the sharing of the rows' sums, which take the place of the weights."""
        self._when_busy(lambda: self.weights.store(self.sum[0], self.row, self.place))

    def factor(self, row: Expr) -> Expr:
        """Return the factor on what a row summed before the last :meth:`update`."""
        return self.factors[row]

    def inverse_sum(self, row: Expr) -> Expr:
        """Return the reciprocal of the sum of a row's exponentials, after :meth:`finish`."""
        total = self.weights.scalars[row, 0]
        for place in range(1, self.share):
            total = total + self.weights.scalars[row, place]
        return T.float32(1.0) / total


class Attention:
    """A work-group's block of queries, and the sums over the values that it has seen.

    Make it at the top of a launch: it allocates.

    Parameters
    ----------
    heads : Heads
        The shape.
    thread : PrimExpr
        The thread's index.
    query : Rows
        The queries, staged by the caller.
    keys : int
        Keys of a block, of :func:`block_shape`.
    """

    def __init__(self, heads: Heads, thread: Expr, query: Rows, keys: int) -> None:
        self.heads, self.query, self.keys = heads, query, keys
        self.products = Products(heads, thread, query.count, keys)
        self.softmax = Softmax(heads, thread, query.count, keys)
        self.mixture = Mixture(heads, thread, query.count)

    def attend(
        self,
        begin: Expr,
        end: Expr,
        stage: Callable[[Expr], tuple[Operand, Operand]],
        choose: Callable[[int, Expr, Expr, float], Expr],
    ) -> Mixture:
        """Emit the attention to blocks of keys, and return its result.

        Parameters
        ----------
        begin, end : PrimExpr
            The range of the blocks' numbers.
        stage : callable
            Given the first key of a block, brings it within reach: its keys and its values.
        choose : callable
            ``choose(i, key, score, hidden)`` is the score where the i-th query of the thread's
            tile sees a key, else the number `hidden`.
        """
        factor = T.float32(self.heads.scale * LOG2_E)
        with loop(end, begin) as index:
            block = bind(index * self.keys)
            key, value = stage(block)
            barrier()
            tile = self.products(self.query, key)
            for i, row in enumerate(self.products.rows):
                for j, column in enumerate(self.products.columns):
                    score = choose(i, block + column, tile[i][j] * factor, MASKED)
                    self.softmax.weights.store(score, row, column)
            barrier()
            self.softmax.update()
            barrier()
            self.mixture.scale(self.softmax.factor)
            self.mixture.add(self.softmax.weights, value)
            barrier()
        self.softmax.finish()
        barrier()
        self.mixture.scale(self.softmax.inverse_sum)
        return self.mixture


def block_shape(heads: Heads, choices: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Return the queries and keys of a block that shared memory holds; `choices` are
    `SMALL_BLOCKS` or `LARGE_BLOCKS`."""

    def size(queries: int, keys: int) -> int:
        rows = (queries + 2 * keys) * heads.row_bytes
        return rows + Weights.bytes(queries, keys) + 4 * queries

    return first_fit(choices, size, heads.shared_bytes)
