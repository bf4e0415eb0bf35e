"""The adjoint of attention, in two launches: blocks of queries, then blocks of keys.

With weights P, outer adjoint dO and ``dP = dO V^T``, the adjoint of the scores is ``dS = P (dP -
rowsum(P dP)) / sqrt(D)``; then ``dQ = dS K``, ``dK = dS^T Q`` and ``dV = P^T dO`` (Dao et al. 2022,
arXiv 2205.14135, appendix B.4). P and dP are computed again wherever they are needed. The first
launch finds the two sums of each row of scores, leaves them for the second, and computes dQ.

Nothing is added to by two work-groups, so the result does not depend on their order. Where few key
heads serve many query heads, a work-group takes one query head, and a third launch adds those that
share a key head.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, when
from .attention_heads import LOG2_E, MASKED, Columns, Heads, first_fit, rotate, when_all
from .attention_rows import PackedRows, Visible, is_static, key_blocks
from .attention_statistics import RowStatistics
from .attention_tiles import Mixture, Products, Weights
from .attention_vectors import matrix_of_vectors, splat, zero
from .kernel import barrier, build, ceil_div, elements, launch, loop, scratch
from .vectors import held

BLOCK = 16
"""Queries, or keys, of a work-group."""
STREAMED = ((32, True), (16, True), (16, False), (8, True), (8, False))
"""Rows that stream past them at a time, and whether the values are in shared memory."""
BUSY = 512
"""Work-groups that keep a large device busy."""


def attention_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the adjoint of the fused queries, keys and values."""
    if not is_static(function.params[2]):
        return None
    heads = Heads.of(parameters, target)

    def body(dy: Buffer, qkv: Buffer, starts: Buffer, rope: Buffer, out: Buffer) -> None:
        adjoint = _Adjoint(PackedRows(heads, qkv, starts, rope), dy, out)
        adjoint.queries()
        adjoint.keys()

    return build(function, body)


class _Adjoint:
    """The tensors, and what the launches leave for each other."""

    def __init__(self, packed: PackedRows, dy: Buffer, out: Buffer) -> None:
        self.packed, self.heads = packed, packed.heads
        self.dy, self.out = (matrix_of_vectors(x, self.heads.lanes) for x in (dy, out))
        self.blocks = ceil_div(packed.context, BLOCK)
        rows = packed.batch * packed.context
        # Logarithm of the sum of the exponentials, and rowsum(P dP), of each head and token.
        self.logarithm, self.mean = (scratch([self.heads.heads, rows]) for _ in range(2))
        work_groups = packed.batch * self.heads.kv_heads * self.blocks
        self.apart = self.heads.group > 1 and work_groups < BUSY
        if self.apart:
            columns = self.heads.heads * self.heads.vectors
            self.parts = [scratch([rows, columns], self.heads.dtype) for _ in range(2)]

    def outer(self, b: Expr, h: Expr) -> Columns:
        """Return the outer adjoint of query head h of row b."""
        return self.packed.columns(self.dy, b, h)

    def queries(self) -> None:
        """Emit the launch over blocks of queries."""
        grid = [self.packed.batch * self.heads.heads, self.blocks]
        with launch(grid, [self.heads.threads]) as (task, block, thread):
            b, h = bind(task // self.heads.heads), bind(task % self.heads.heads)
            # The last queries see the most keys, so they begin first.
            first = bind((self.blocks - 1 - block) * BLOCK)
            _QueryBlock(self, thread, b, h, first).emit()

    def keys(self) -> None:
        """Emit the launch over blocks of keys, and the sum over query heads where there is one."""
        tasks = self.heads.heads if self.apart else self.heads.kv_heads
        grid = [self.packed.batch * tasks, self.blocks]
        with launch(grid, [self.heads.threads]) as (task, block, thread):
            b, head = bind(task // tasks), bind(task % tasks)
            _KeyBlock(self, thread, b, head, bind(block * BLOCK)).emit()
        if self.apart:
            self._add_parts()

    def _add_parts(self) -> None:
        heads, packed = self.heads, self.packed
        row_pairs = heads.kv_heads * heads.half

        def pair(index: Expr) -> None:
            row, place = bind(index // row_pairs), bind(index % row_pairs)
            kv, v = bind(place // heads.half), bind(place % heads.half)
            first = bind(kv * heads.group * heads.vectors + v)
            sums = []
            for part in self.parts:
                for half in (0, heads.half):
                    total = zero(heads.lanes)
                    for g in range(heads.group):
                        total = total + part[row, first + half + g * heads.vectors]
                    sums.append(bind(total))
            b, token = bind(row // packed.context), bind(row % packed.context)
            self.write_key(b, kv, token, v, *sums[:2])
            self.write_value(b, kv, token, v, *sums[2:])

        elements(packed.batch * packed.context * row_pairs, heads.threads, pair)

    def write_rotated(
        self, b: Expr, head: Expr, token: Expr, v: Expr, low: Expr, high: Expr
    ) -> None:
        """Emit the store of a pair of vectors, rotated back, as those of a head of the input."""
        position = token - self.packed.starts[b, token]
        pair = rotate(self.heads, self.packed.rope, position, v, low, high, back=True)
        self._write(self.out, b, head, token, v, *pair)

    def write_key(self, b: Expr, kv: Expr, token: Expr, v: Expr, low: Expr, high: Expr) -> None:
        """Emit the store of a pair of vectors of dK."""
        self.write_rotated(b, self.heads.heads + kv, token, v, low, high)

    def write_value(self, b: Expr, kv: Expr, token: Expr, v: Expr, low: Expr, high: Expr) -> None:
        """Emit the store of a pair of vectors of dV."""
        head = self.heads.heads + self.heads.kv_heads + kv
        self._write(self.out, b, head, token, v, low, high)

    def write_part(
        self, part: int, b: Expr, h: Expr, token: Expr, v: Expr, low: Expr, high: Expr
    ) -> None:
        """Emit the store of a pair of vectors of what query head h adds to dK (0) or dV (1)."""
        self._write(self.parts[part], b, h, token, v, low, high)

    def _write(
        self, matrix: Buffer, b: Expr, head: Expr, token: Expr, v: Expr, low: Expr, high: Expr
    ) -> None:
        row = bind(b * self.packed.context + token)
        column = bind(head * self.heads.vectors + v)
        T.buffer_store(matrix, low, [row, column])
        T.buffer_store(matrix, high, [row, column + self.heads.half])


class _QueryBlock:
    """A block of queries of one head: the sums of its rows of scores, and dQ."""

    def __init__(self, adjoint: _Adjoint, thread: Expr, b: Expr, h: Expr, first: Expr) -> None:
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
        return scores, dprobability

    def _keep(self, row: Expr, logarithm: Expr, mean: Expr) -> None:
        """Emit the store of a row's sums for the launch over keys."""
        token = bind(self.first + row)

        def store() -> None:
            place = bind(self.b * self.packed.context + token)
            T.buffer_store(self.adjoint.logarithm, logarithm, [self.h, place])
            T.buffer_store(self.adjoint.mean, mean, [self.h, place])

        when(token < self.packed.context, store)


class _KeyBlock:
    """A block of keys and values of one head: dK and dV, of all its query heads or of one."""

    def __init__(self, adjoint: _Adjoint, thread: Expr, b: Expr, head: Expr, first: Expr) -> None:
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
            for i, key_row in enumerate(self.products.rows):
                key = bind(self.first + key_row)
                seen = T.And(T.And(key <= token, key >= start), token < self.packed.context)
                weight = T.exp2(scores[i][j] * factor - logarithm)
                weight = held(T.if_then_else(seen, weight, T.float32(0.0)))
                self.weights.store(weight, key_row, column)
                self.dscores.store(weight * (dprobability[i][j] - mean), key_row, column)
        barrier()
        self.dvalue.add(self.weights, self.outer)
        self.dkey.add(self.dscores, self.query)
        barrier()
