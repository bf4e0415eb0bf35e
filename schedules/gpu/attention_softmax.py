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

QUERIES = 16
"""Queries of a work-group: few, since a single short row has to keep a whole device busy."""
KEYS = ((32,), (16,), (8,))
"""Keys of a block, as many as fit into shared memory."""


class Softmax:
    """The running softmax of ``m`` rows of scores that come ``n`` at a time.

    Neighbouring threads share a row: each finds the largest score of it, and takes every S-th of
    the exponentials. Barriers must part what its methods do from each other.

    Attributes
    ----------
    scores : Weights
        The scores, in units of log 2.
    weights : Weights
        Their exponentials less the largest so far.
    """

    def __init__(self, heads: Heads, thread: Expr, m: int, n: int) -> None:
        self.scores, self.weights = Weights(m, n), Weights(m, n)
        self.share = min(heads.threads // m, n)
        self.row, self.place = bind(thread // self.share), bind(thread % self.share)
        self.busy = self.share * m == heads.threads
        self.factors = shared([m])
        self.top, self.sum = registers([1]), registers([1])
        T.buffer_store(self.top, T.float32(MASKED), [0])
        T.buffer_store(self.sum, T.float32(0.0), [0])

    def _when_busy(self, body: Callable[[], None]) -> None:
        body() if self.busy else when(self.row < self.scores.rows, body)

    def update(self) -> None:
        """Emit the exponentials of a block, and the factor on what was summed before it."""
        self._when_busy(self._update)

    def _update(self) -> None:
        top = self.top[0]
        for k in range(self.scores.n // 4):
            vector = bind(self.scores.vector(self.row, k))
            for lane in range(4):
                top = T.max(top, extract(vector, lane, 4))
        top = held(top)
        factor = held(T.exp2(self.top[0] - top))
        total = self.sum[0] * factor
        for k in range(self.scores.n // self.share):
            column = bind(self.place + k * self.share)
            weight = bind(T.exp2(self.scores.scalars[self.row, column] - top))
            self.weights.store(weight, self.row, column)
            total = total + weight
        T.buffer_store(self.sum, total, [0])
        T.buffer_store(self.top, top, [0])
        when(self.place == 0, lambda: T.buffer_store(self.factors, factor, [self.row]))

    def finish(self) -> None:
        """Emit the sharing of the rows' sums, which take the place of the scores."""
        self._when_busy(lambda: self.scores.store(self.sum[0], self.row, self.place))

    def factor(self, row: Expr) -> Expr:
        """Return the factor on what a row summed before the last :meth:`update`."""
        return self.factors[row]

    def inverse_sum(self, row: Expr) -> Expr:
        """Return the reciprocal of the sum of a row's exponentials, after :meth:`finish`."""
        total = self.scores.scalars[row, 0]
        for place in range(1, self.share):
            total = total + self.scores.scalars[row, place]
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
        Keys of a block, of :func:`keys_of_block`.
    """

    def __init__(self, heads: Heads, thread: Expr, query: Rows, keys: int) -> None:
        self.heads, self.query, self.keys = heads, query, keys
        self.products = Products(heads, thread, QUERIES, keys)
        self.softmax = Softmax(heads, thread, QUERIES, keys)
        self.mixture = Mixture(heads, thread, QUERIES)

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
                    self.softmax.scores.store(score, row, column)
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


def keys_of_block(heads: Heads) -> int:
    """Return the keys of a block, as many as shared memory holds beside the queries."""

    def size(keys: int) -> int:
        rows = (QUERIES + 2 * keys) * heads.row_bytes
        return rows + 2 * Weights.bytes(QUERIES, keys) + 4 * QUERIES

    return int(first_fit(KEYS, size, heads.shared_bytes)[0])
