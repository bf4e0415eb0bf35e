"""What a work-group of attention's adjoint does: a block of queries, or a block of keys."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .attention_adjoint import Adjoint
from .attention_heads import LOG2_E, MASKED, first_fit, when_all
from .attention_rows import Visible, key_blocks
from .attention_statistics import RowStatistics
from .attention_tiles import Mixture, Products, Weights
from .attention_vectors import splat, times
from .kernel import barrier, ceil_div, loop
from .vectors import held

BLOCK = 16
"""Queries, or keys, of a work-group."""
STREAMED = ((32, True), (16, True), (16, False), (8, True), (8, False))
"""Rows that stream past them at a time, and whether the values are in shared memory."""


class QueryBlock:
    """A block of queries of one head: the sums of its rows of scores, and dQ."""

    def __init__(self, adjoint: Adjoint, thread: Expr, b: Expr, h: Expr, first: Expr) -> None:
        self.adjoint, self.packed, self.heads = adjoint, adjoint.packed, adjoint.heads
        self.thread, self.b, self.h, self.first = thread, b, h, first
        self.kv = bind(h // self.heads.group)
        self.count, staged = first_fit(STREAMED, self._bytes, self.heads.shared_bytes)
        rows = self.packed.rows
        self.query, self.outer = (rows(thread, BLOCK) for _ in range(2))
        self.key, self.value = rows(thread, self.count), rows(thread, self.count, staged)
        self.products = Products(self.heads, thread, BLOCK, self.count)
        self.weights = Weights(BLOCK, self.count)
        self.visible = Visible(self.packed, b, [first + row for row in self.products.rows])
        self.undo = [adjoint.weight(b, query) for query in self.visible.queries]

    def _bytes(self, count: int, staged: bool) -> int:
        rows = 2 * BLOCK + (2 if staged else 1) * count
        statistics = RowStatistics.bytes(self.heads, BLOCK, count)
        return rows * self.heads.row_bytes + Weights.bytes(BLOCK, count) + statistics

    def emit(self) -> None:
        """Emit the block."""
        self.query.stage(self.packed.query(self.b, self.h), self.first)
        self.outer.stage(self.adjoint.outer(self.b, self.h), self.first)
        self.begin, self.end = key_blocks(self.packed, self.b, self.first, BLOCK, self.count)
        statistics = RowStatistics(self.products)
        with loop(self.end, self.begin) as index:
            scores, dprobability = self._tiles(bind(index * self.count))
            for i in range(len(self.products.rows)):
                statistics.update(i, scores[i], dprobability[i])
            barrier()
        logarithm, mean = statistics.finish(self.thread, self._keep)
        mixture = Mixture(self.heads, self.thread, BLOCK)
        with loop(self.end, self.begin) as index:
            scores, dprobability = self._tiles(bind(index * self.count))
            for i, row in enumerate(self.products.rows):
                for j, column in enumerate(self.products.columns):
                    weight = T.exp2(scores[i][j] - logarithm[i])
                    self.weights.store(weight * (dprobability[i][j] - mean[i]), row, column)
            barrier()
            mixture.add(self.weights, self.key)
            barrier()
        factor = splat(T.float32(self.heads.scale), self.heads.lanes)

        def write(row: Expr, v: Expr, low: Expr, high: Expr) -> None:
            token = bind(self.first + row)
            pair = bind(low * factor), bind(high * factor)
            self.adjoint.write_rotated(self.b, self.h, token, v, *pair)

        mixture.store(lambda row: self.first + row < self.packed.context, write)

    def _tiles(self, block: Expr) -> tuple[list[list[Expr]], list[list[Expr]]]:
        """Emit the tiles of the scores, in units of log 2, and of dP for the keys from `block`."""
        self.key.stage(self.packed.key(self.b, self.kv), block)
        self.value.stage(self.packed.value(self.b, self.kv), block)
        barrier()
        scores = self.products(self.query, self.key)
        dprobability = self.products(self.outer, self.value)
        factor = T.float32(self.heads.scale * LOG2_E)
        for i, row in enumerate(scores):
            for j, column in enumerate(self.products.columns):
                score = self.visible.choose(i, block + column, row[j] * factor, MASKED)
                row[j] = held(score)
                dprobability[i][j] = times(dprobability[i][j], self.undo[i])
        return scores, dprobability

    def _keep(self, row: Expr, logarithm: Expr, mean: Expr) -> None:
        """Emit the store of a row's sums for the launch over keys."""
        token = bind(self.first + row)

        def store() -> None:
            place = bind(self.b * self.packed.context + token)
            T.buffer_store(self.adjoint.logarithm, logarithm, [self.h, place])
            T.buffer_store(self.adjoint.mean, mean, [self.h, place])

        when(token < self.packed.context, store)


class KeyBlock:
    """A block of keys and values of one head: dK and dV, of all its query heads or of one."""

    def __init__(self, adjoint: Adjoint, thread: Expr, b: Expr, head: Expr, first: Expr) -> None:
        self.adjoint, self.packed, self.heads = adjoint, adjoint.packed, adjoint.heads
        self.thread, self.b, self.head, self.first = thread, b, head, first
        self.kv = bind(head // self.heads.group) if adjoint.apart else head
        self.count, staged = first_fit(STREAMED, self._bytes, self.heads.shared_bytes)
        rows = self.packed.rows
        self.key, self.value = rows(thread, BLOCK), rows(thread, BLOCK, staged)
        self.query, self.outer = (rows(thread, self.count) for _ in range(2))
        self.products = Products(self.heads, thread, BLOCK, self.count)
        self.weights, self.dscores = (Weights(BLOCK, self.count) for _ in range(2))
        self.dkey, self.dvalue = (Mixture(self.heads, thread, BLOCK) for _ in range(2))

    def _bytes(self, count: int, staged: bool) -> int:
        rows = (2 if staged else 1) * BLOCK + 2 * count
        return rows * self.heads.row_bytes + 2 * Weights.bytes(BLOCK, count)

    def emit(self) -> None:
        """Emit the block."""
        self.key.stage(self.packed.key(self.b, self.kv), self.first)
        self.value.stage(self.packed.value(self.b, self.kv), self.first)
        if self.adjoint.apart:
            self._query_head(self.head)
        else:
            with loop(self.heads.group) as g:
                self._query_head(bind(self.kv * self.heads.group + g))
        factor = splat(T.float32(self.heads.scale), self.heads.lanes)

        def exists(row: Expr) -> Expr:
            return self.first + row < self.packed.context

        def write_key(row: Expr, v: Expr, low: Expr, high: Expr) -> None:
            token, low, high = bind(self.first + row), bind(low * factor), bind(high * factor)
            if self.adjoint.apart:
                self.adjoint.write_part(0, self.b, self.head, token, v, low, high)
            else:
                self.adjoint.write_key(self.b, self.kv, token, v, low, high)

        def write_value(row: Expr, v: Expr, low: Expr, high: Expr) -> None:
            token = bind(self.first + row)
            if self.adjoint.apart:
                self.adjoint.write_part(1, self.b, self.head, token, v, low, high)
            else:
                self.adjoint.write_value(self.b, self.kv, token, v, low, high)

        self.dkey.store(exists, write_key)
        self.dvalue.store(exists, write_value)

    def _query_head(self, h: Expr) -> None:
        end = ceil_div(self.packed.context, self.count)
        with loop(end, self.first // self.count) as index:
            block = bind(index * self.count)
            # Documents that begin after these keys see none of them.
            seen = self.packed.starts[self.b, block] < self.first + BLOCK
            when_all(seen, lambda: self._queries(h, block))

    def _queries(self, h: Expr, block: Expr) -> None:
        self.query.stage(self.packed.query(self.b, h), block)
        self.outer.stage(self.adjoint.outer(self.b, h), block)
        barrier()
        scores = self.products(self.key, self.query)
        dprobability = self.products(self.value, self.outer)
        factor = T.float32(self.heads.scale * LOG2_E)
        for j, column in enumerate(self.products.columns):
            token = bind(block + column)
            place = bind(T.min(token, self.packed.context - 1))
            row = bind(self.b * self.packed.context + place)
            logarithm = bind(self.adjoint.logarithm[h, row])
            mean = bind(self.adjoint.mean[h, row])
            start = bind(self.packed.starts[self.b, place])
            undo = self.adjoint.weight(self.b, place)
            for i, key_row in enumerate(self.products.rows):
                key = bind(self.first + key_row)
                seen = T.And(T.And(key <= token, key >= start), token < self.packed.context)
                weight = T.exp2(scores[i][j] * factor - logarithm)
                weight = held(T.if_then_else(seen, weight, T.float32(0.0)))
                # The sums over queries take in what their own outer adjoints are kept in.
                self.weights.store(times(weight, undo), key_row, column)
                outer = times(dprobability[i][j], undo)
                self.dscores.store(weight * (outer - mean), key_row, column)
        barrier()
        self.dvalue.add(self.weights, self.outer)
        self.dkey.add(self.dscores, self.query)
        barrier()
