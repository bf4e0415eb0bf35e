"""A block of keys in the adjoint of attention, on matrix units whose fragments are known."""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .attention_fragment_block import Block, Stored, mix, products
from .attention_fragment_tile import pairs_of
from .attention_heads import LOG2_E
from .fragments import RowSums, exp2
from .halves import TOP, scales
from .kernel import Gpu, ceil_div, loop, registers, shared
from .reduction import reduction
from .vectors import held

NEVER = 1 << 30
"""Where the document of no query begins."""


class KeyBlock(Block):
    """A block of keys and values of one head: dK and dV, of all its query heads or of one."""

    def __init__(
        self, gpu: Gpu, stored: Stored, thread: Expr, subgroups: int, place: tuple
    ) -> None:
        super().__init__(stored, thread, subgroups, place)
        self.maxima = reduction(gpu, self.threads, thread, 2, combine=tirx.max)
        self.columns = [shared([self.streamed]) for _ in range(4)]
        self.documents = shared([self.streamed], "int32")
        self.known, self.document = registers([3]), registers([1], "int32")

    def emit(self) -> None:
        """Emit the block."""
        heads, stored = self.heads, self.stored
        self.kv = bind(self.h // heads.group) if stored.apart else self.h
        key = heads.heads + self.kv
        sources = (self.matrix, key), (self.matrix, key + heads.kv_heads)
        self.ask(self.count, self.first, 0, *sources)
        self.left = self.lefts()
        self._measure()
        self.dkey, self.dvalue = RowSums(heads.head_dim), RowSums(heads.head_dim)
        self.dkey.clear()
        self.dvalue.clear()
        if stored.apart:
            self._query_head(self.h)
        else:
            with loop(heads.group) as g:
                self._query_head(bind(self.kv * heads.group + g))
        for i, token in enumerate(self.tokens):
            when(token < self.packed.context, partial(self._store, i))

    def _store(self, i: int) -> None:
        heads, stored = self.heads, self.stored
        key = heads.heads + self.kv
        factor_key = held(self.down_key * T.float32(2.0 * heads.scale))
        if stored.apart:
            parts = [pairs_of(part) for part in stored.adjoint.parts]
            self.store(i, parts[0], self.h, self.dkey, factor_key)
            self.store(i, parts[1], self.h, self.dvalue, self.down_value)
            return
        out = pairs_of(stored.out)
        self.store_rotated(i, out, key, self.dkey, factor_key)
        self.store(i, out, key + heads.kv_heads, self.dvalue, self.down_value)

    def _measure(self) -> None:
        """Emit the factors for weights and adjoints of scores, by the largest of any query."""
        heads, stored, context = self.heads, self.stored, self.packed.context
        mine = registers([2])
        for i in range(2):
            T.buffer_store(mine, T.float32(0.0), [i])
        with loop((context - self.first + (self.threads - 1)) // self.threads) as step:
            token = bind(T.min(self.first + step * self.threads + self.thread, context - 1))
            place = bind(self.begin + token)
            T.buffer_store(mine, T.max(mine[0], stored.halves.undo[place]), [0])
            for g in range(1 if stored.apart else heads.group):
                h = self.h if stored.apart else self.h * heads.group + g
                T.buffer_store(mine, T.max(mine[1], stored.reach[h, place]), [1])
        self.maxima.put([mine[0], mine[1]])
        undo, reach = (held(self.maxima.get(i)) for i in range(2))
        up, self.down_key = scales(reach)
        self.up_key = held(up * T.float32(0.5))
        # The factors on rows are powers of two, and so is the largest.
        self.up_value = held(T.float32(2.0**TOP) / undo)
        self.down_value = held(undo * T.float32(2.0**-TOP))

    def _query_head(self, h: Expr) -> None:
        begin, end = self.first // self.streamed, ceil_div(self.packed.context, self.streamed)

        def add(block: Expr, place: Expr) -> None:
            # What is known of the next queries is on its way, too.
            self._fetch_columns(h, bind(block + self.streamed))
            # Documents that begin after these keys see none of them, and a subgroup whose keys
            # all follow the queries has nothing to do.
            seen = self.packed.starts[self.b, block] < self.first + self.count
            reaches = self.first + self.own < block + self.streamed
            when(tirx.all(seen, reaches), partial(self._add_queries, block, place))

        self._fetch_columns(h, bind(begin * self.streamed))
        sources = (self.matrix, h), (self.outer, h)
        self.stream((begin, end), sources, add, self._put_columns)

    def _fetch_columns(self, h: Expr, block: Expr) -> None:
        """Emit the loads of what is known of each query, by a thread for each."""
        stored, context = self.stored, self.packed.context
        column = bind(self.thread % self.streamed)
        token = bind(T.min(block + column, context - 1))
        place = bind(self.begin + token)
        logarithm, mean, _ = (buffer[h, place] for buffer in stored.statistics())
        # As they are: what is computed from them would be waited for here.
        for i, value in enumerate((logarithm, stored.halves.undo[place], mean)):
            T.buffer_store(self.known, value, [i])
        T.buffer_store(self.document, self.packed.starts[self.b, token], [0])

    def _put_columns(self, block: Expr) -> None:
        """Emit the stores of what was loaded."""
        logarithm, undo, mean = (self.known[i] for i in range(3))
        values = (logarithm, undo * self.up_value, undo * self.up_key, mean * self.up_key)

        def put() -> None:
            for buffer, value in zip(self.columns, values, strict=True):
                T.buffer_store(buffer, value, [self.thread])
            exists = block + self.thread < self.packed.context
            own = T.if_then_else(exists, self.document[0], NEVER)
            T.buffer_store(self.documents, own, [self.thread])

        when(self.thread < self.streamed, put)

    def _add_queries(self, block: Expr, begin: Expr) -> None:
        heads = self.heads
        scores, dweights = (
            products(left, rows.rows, begin, self.streamed, heads.head_dim)
            for left, rows in zip(self.left, (self.one, self.other), strict=True)
        )
        factor = T.float32(heads.scale * LOG2_E)
        for j in range(scores.count):
            weights: list[Expr] = [None] * 4
            adjoints: list[Expr] = [None] * 4
            for c in range(2):
                column = bind(self.lane.column + (j * 8 + c))
                logarithm, weigh, up, mean = (bind(buffer[column]) for buffer in self.columns)
                start, query = bind(self.documents[column]), bind(block + column)
                for i in range(2):
                    seen = T.And(self.tokens[i] <= query, self.tokens[i] >= start)
                    value = exp2(scores.get(j)[2 * i + c] * factor - logarithm)
                    weight = held(T.if_then_else(seen, value, T.float32(0.0)))
                    outer = dweights.get(j)[2 * i + c] * up - mean
                    weights[2 * i + c] = held(weight * weigh)
                    adjoints[2 * i + c] = held(weight * outer)
            scores.put(j, weights)
            dweights.put(j, adjoints)
        mix(self.dvalue, scores, self.other.rows, begin, heads.head_dim, self.streamed)
        mix(self.dkey, dweights, self.one.rows, begin, heads.head_dim, self.streamed)
