"""What a work-group of attention's adjoint does where fragments are known: queries, or keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, when
from .attention_adjoint import Adjoint
from .attention_fragments import pair_of
from .attention_heads import LOG2_E, MASKED, Heads, when_all
from .attention_rows import key_blocks
from .attention_vectors import view
from .fragments import DEPTH, EIGHT, ROWS, HalfRows, Lane, RowSums, exp2, quad_max, quad_sum
from .halves import TOP, Halves, scales
from .kernel import Gpu, barrier, ceil_div, loop, registers, scratch, shared
from .reduction import reduction
from .ternary_tile import cores
from .vectors import fours, held, lane

STREAMED = {96: 32}
"""Rows of a block that stream past others, by the widest heads: their products are in registers."""
NARROWEST = 16
"""The same of wider heads."""
SUBGROUPS = (4, 2, 1)
"""Subgroups of a work-group."""
NEVER = 1 << 30
"""Where the document of no query begins."""


def streamed(heads: Heads) -> int:
    """Return the rows of a block that streams past."""
    return next((n for widest, n in STREAMED.items() if heads.head_dim <= widest), NARROWEST)


def fits(heads: Heads) -> bool:
    """Tell whether shared memory holds two blocks, and what is known of their rows."""
    rows = streamed(heads)
    size = 2 * max(rows, SUBGROUPS[0] * ROWS) * (heads.head_dim // EIGHT + 1) * 16
    return size + 32 * rows + 1024 <= heads.shared_bytes


def subgroups_for(gpu: Gpu, tasks: int, context: int) -> int:
    """Return the subgroups of a work-group: as many as leave work for nearly every core."""

    def groups(subgroups: int) -> int:
        return tasks * ceil_div(context, ROWS * subgroups)

    return next((n for n in SUBGROUPS if 4 * groups(n) >= 3 * cores(gpu)), 1)


class Stored:
    """The tensors of the adjoint as vectors of 16-bit floats, and what its launches leave.

    Parameters
    ----------
    adjoint : Adjoint
        The tensors.
    outer : Halves
        The outer adjoint.
    rope, out : Buffer
        The table and the result as they are.
    """

    def __init__(self, adjoint: Adjoint, outer: Halves, rope: Buffer, out: Buffer) -> None:
        self.adjoint, self.packed, self.heads = adjoint, adjoint.packed, adjoint.heads
        self.apart, self.halves, self.rope, self.out = adjoint.apart, outer, rope, out
        # The largest product of each row's outer adjoint with a value.
        self.reach = scratch([self.heads.heads, self.packed.batch * self.packed.context])

    def rows(self) -> Buffer:
        """Return queries, keys and values, in vectors of eight."""
        rotated = self.packed.rotated
        assert rotated is not None
        rows, vectors = rotated.shape
        return view(rotated, [rows, vectors * self.heads.lanes // EIGHT], "int32x4")

    def outer(self) -> Buffer:
        """Return the outer adjoint, in vectors of eight."""
        return fours(self.halves.words)

    def statistics(self) -> tuple[Buffer, Buffer, Buffer]:
        """Return the buffers of the logarithms, the means and the largest products."""
        return self.adjoint.logarithm, self.adjoint.mean, self.reach

    def place(self, b: Expr, token: Expr) -> Expr:
        """Return the row of a token."""
        return b * self.packed.context + token

    def pairs(self, buffer: Buffer) -> Buffer:
        """Return a matrix of float32 in pairs of columns."""
        rows, columns = buffer.shape
        lanes = 4 if "x" in str(buffer.dtype) else 1
        return view(buffer, [rows, columns * lanes // 2], "float32x2")


class _Rows:
    """A block of rows of a head in shared memory, of one 16-bit float an element."""

    def __init__(
        self, heads: Heads, place: Lane, thread: Expr, threads: int, count: int, memory: int
    ) -> None:
        self.heads, self.thread, self.threads, self.count = heads, thread, threads, count
        self.vectors = heads.head_dim // EIGHT
        self.rows = HalfRows(place, memory, self.vectors)

    def fetch(self, count: int, matrix: Buffer, row: Expr, last: Expr, head: Expr) -> list:
        """Emit the loads of rows from `row` on, of which those past `last` repeat it."""
        items, loaded = count * self.vectors, []
        for step in range(ceil_div(items, self.threads)):
            item = bind(self.thread + step * self.threads)
            own, vector = bind(item // self.vectors), bind(item % self.vectors)
            token = bind(T.min(row + own, last))
            value = held(matrix[token, head * self.vectors + vector])
            loaded.append((item, own, vector, value))
        return loaded

    def put(self, count: int, loaded: list) -> None:
        """Emit the stores of what was loaded."""
        items = count * self.vectors
        for step, (item, own, vector, value) in enumerate(loaded):
            put = partial(self.rows.put, own, vector, value)
            put() if (step + 1) * self.threads <= items else when(item < items, put)

    def left(self, row: Expr) -> Buffer:
        """Emit the reading of 16 rows as left factors, and return them."""
        factors = registers([self.heads.head_dim // DEPTH], "int32x4")
        for k in range(self.heads.head_dim // DEPTH):
            T.buffer_store(factors, self.rows.left(row, 2 * k), [k])
        return factors


def _products(left: Buffer, rows: HalfRows, columns: int, depth: int) -> RowSums:
    """Emit the products of 16 rows with a block of rows in shared memory."""
    sums = RowSums(columns)
    sums.clear()
    for k in range(depth // DEPTH):
        for pair in range(columns // 16):
            sums.add(pair, left[k], rows.right(16 * pair, 2 * k))
    return sums


def _mix(sums: RowSums, weights: RowSums, rows: HalfRows, columns: int, depth: int) -> None:
    """Emit the addition of the sums of rows in shared memory that weights weigh."""
    for k in range(depth // DEPTH):
        left = weights.left(k)
        for pair in range(columns // 16):
            sums.add(pair, left, rows.turned(16 * k, 2 * pair))


class _Block:
    """What both kinds of blocks have; make it at the top of a launch."""

    def __init__(self, stored: Stored, thread: Expr, subgroups: int, place: tuple) -> None:
        self.stored, self.packed, self.heads = stored, stored.packed, stored.heads
        self.thread, (self.b, self.h, self.first) = thread, place
        self.lane, self.count = Lane(), subgroups * ROWS
        self.threads, self.streamed = subgroups * 32, streamed(stored.heads)
        memory = max(self.count, self.streamed)
        self.one, self.other = (
            _Rows(self.heads, self.lane, thread, self.threads, self.streamed, memory)
            for _ in range(2)
        )
        self.matrix, self.outer = stored.rows(), stored.outer()
        self.begin = bind(self.b * self.packed.context)
        self.last = bind(self.begin + self.packed.context - 1)
        self.own = bind(self.lane.subgroup * ROWS)
        self.tokens = [bind(self.first + self.own + self.lane.row + 8 * i) for i in range(2)]

    def stage(self, count: int, first: Expr, *sources: tuple[Buffer, Expr]) -> None:
        """Emit the copy of two blocks of rows: pairs of a matrix and a head."""
        row = bind(self.begin + first)
        blocks = self.one, self.other
        loaded = [
            block.fetch(count, matrix, row, self.last, head)
            for block, (matrix, head) in zip(blocks, sources, strict=True)
        ]
        for block, values in zip(blocks, loaded, strict=True):
            block.put(count, values)

    def lefts(self) -> tuple[Buffer, Buffer]:
        """Emit the reading of the block's own rows, which were staged, into registers."""
        barrier()
        found = self.one.left(self.own), self.other.left(self.own)
        barrier()
        return found

    def store(self, i: int, buffer: Buffer, head: Expr, sums: RowSums, factor: Expr) -> None:
        """Emit the store of one of the thread's rows, as it is."""
        row = bind(self.begin + self.tokens[i])
        column = bind((head * self.heads.head_dim + self.lane.column) // 2)
        for j in range(sums.count):
            a, b = sums.get(j)[2 * i : 2 * i + 2]
            T.buffer_store(buffer, pair_of(a * factor, b * factor), [row, column + 4 * j])

    def store_rotated(
        self, i: int, buffer: Buffer, head: Expr, sums: RowSums, factor: Expr
    ) -> None:
        """Emit the store of one of the thread's rows, rotated back."""
        token, half = self.tokens[i], sums.count // 2
        position = bind(token - self.packed.starts[self.b, token])
        rope = self.stored.pairs(self.stored.rope)
        row = bind(self.begin + token)
        own = bind(self.lane.column // 2)
        column = bind(head * self.heads.head_dim // 2 + own)
        for j in range(half):
            cosine = bind(rope[position, own + 4 * j])
            sine = bind(rope[position, own + 4 * (j + half)])
            low, high = (sums.get(n)[2 * i : 2 * i + 2] for n in (j, j + half))
            lows, highs = [], []
            for c in range(2):
                a, z = held(low[c] * factor), held(high[c] * factor)
                cos, sin = lane(cosine, c), lane(sine, c)
                lows.append(a * cos + z * sin)
                highs.append(z * cos - a * sin)
            T.buffer_store(buffer, pair_of(*lows), [row, column + 4 * j])
            T.buffer_store(buffer, pair_of(*highs), [row, column + 4 * (j + half)])


class QueryBlock(_Block):
    """A block of queries of one head: the sums of its rows of scores, and dQ."""

    def emit(self) -> None:
        """Emit the block."""
        heads, stored = self.heads, self.stored
        self.kv = bind(self.h // heads.group)
        self.stage(self.count, self.first, (self.matrix, self.h), (self.outer, self.h))
        self.left = self.lefts()
        self.seen = [bind(T.min(token, self.packed.context - 1)) for token in self.tokens]
        self.starts = [bind(self.packed.starts[self.b, token]) for token in self.seen]
        blocks = key_blocks(self.packed, self.b, self.first, self.count, self.streamed)
        logarithm, mean, reach = self._statistics(blocks)
        places = [bind(self.begin + token) for token in self.seen]
        undo = [held(stored.halves.undo[place]) for place in places]
        for i, token in enumerate(self.tokens):
            keep = partial(
                self._keep, places[i], logarithm[i], mean[i] * undo[i], reach[i], undo[i]
            )
            when(tirx.all(self.lane.column == 0, token < self.packed.context), keep)
        # An adjoint of a score is at most twice the largest product.
        factors = [scales(reach[i]) for i in range(2)]
        ups = [held(up * T.float32(0.5)) for up, _ in factors]
        dquery = RowSums(heads.head_dim)
        dquery.clear()

        def add(block: Expr) -> None:
            scores, dweights = self._tiles(block)
            for j in range(scores.count):
                found = []
                for c, (score, dweight) in enumerate(
                    zip(scores.get(j), dweights.get(j), strict=True)
                ):
                    i = c // 2
                    weight = exp2(score - logarithm[i]) * ups[i]
                    found.append(held(weight * (dweight - mean[i])))
                scores.put(j, found)
            _mix(dquery, scores, self.one.rows, heads.head_dim, self.streamed)

        self._each(blocks, add)
        out = stored.pairs(stored.out)
        for i, token in enumerate(self.tokens):
            factor = held(factors[i][1] * T.float32(2.0 * heads.scale) * undo[i])
            store = partial(self.store_rotated, i, out, self.h, dquery, factor)
            when(token < self.packed.context, store)

    def _each(self, blocks: tuple[Expr, Expr], body: Callable[[Expr], None]) -> None:
        """Emit ``body(first key)`` for the blocks of keys that the subgroup's queries see."""
        key, rows = self.heads.heads + self.kv, self.streamed
        furthest = bind(self.first + self.own + (ROWS - 1))
        with loop(blocks[1], blocks[0]) as index:
            block = bind(index * rows)
            self.stage(rows, block, (self.matrix, key), (self.matrix, key + self.heads.kv_heads))
            barrier()
            when(block <= furthest, partial(body, block))
            barrier()

    def _tiles(self, block: Expr) -> tuple[RowSums, RowSums]:
        """Emit the scores, in units of log 2, and dP for the keys from `block` on."""
        heads = self.heads
        scores, dweights = (
            _products(left, rows.rows, self.streamed, heads.head_dim)
            for left, rows in zip(self.left, (self.one, self.other), strict=True)
        )
        factor = T.float32(heads.scale * LOG2_E)
        for j in range(scores.count):
            found = []
            for c, value in enumerate(scores.get(j)):
                place = bind(block + (j * 8 + c % 2) + self.lane.column)
                seen = T.And(place <= self.seen[c // 2], place >= self.starts[c // 2])
                found.append(held(T.if_then_else(seen, value * factor, T.float32(MASKED))))
            scores.put(j, found)
        return scores, dweights

    def _statistics(self, blocks: tuple[Expr, Expr]) -> tuple[list[Expr], list[Expr], list[Expr]]:
        """Emit the sums of the thread's rows.

        Returns
        -------
        tuple of list
            The logarithm to base 2 of the sum of exponentials, the mean of dP, and the largest dP.
        """
        top, total, weighted, reach = (registers([2]) for _ in range(4))
        for i in range(2):
            T.buffer_store(top, T.float32(MASKED), [i])
            for sums in (total, weighted, reach):
                T.buffer_store(sums, T.float32(0.0), [i])

        def add(block: Expr) -> None:
            scores, dweights = self._tiles(block)
            for i in range(2):
                self._add_row(i, scores, dweights, (top, total, weighted, reach))

        self._each(blocks, add)
        found: tuple[list[Expr], list[Expr], list[Expr]] = ([], [], [])
        for i in range(2):
            peak = quad_max(top[i])
            factor = held(exp2(top[i] - peak))
            whole, mean = quad_sum(total[i] * factor), quad_sum(weighted[i] * factor)
            found[0].append(held(peak + T.log2(whole)))
            found[1].append(held(mean / whole))
            found[2].append(quad_max(reach[i]))
        return found

    def _add_row(self, i: int, scores: RowSums, dweights: RowSums, sums: tuple) -> None:
        """Emit the addition of a block to the sums of one of the thread's rows."""
        top, total, weighted, reach = sums
        terms = [
            (scores.get(j)[2 * i + c], dweights.get(j)[2 * i + c])
            for j in range(scores.count)
            for c in range(2)
        ]
        peak, largest = top[i], reach[i]
        for score, term in terms:
            peak = held(T.max(peak, score))
            seen = score > T.float32(MASKED)
            largest = held(T.max(largest, T.if_then_else(seen, T.fabs(term), T.float32(0.0))))
        factor = held(exp2(top[i] - peak))
        whole, mean = total[i] * factor, weighted[i] * factor
        for score, term in terms:
            weight = held(exp2(score - peak))
            whole, mean = held(whole + weight), held(mean + weight * term)
        for buffer, value in zip(sums, (peak, whole, mean, largest), strict=True):
            T.buffer_store(buffer, value, [i])

    def _keep(self, place: Expr, logarithm: Expr, mean: Expr, reach: Expr, undo: Expr) -> None:
        for buffer, value in zip(
            self.stored.statistics(), (logarithm, mean, reach * undo), strict=True
        ):
            T.buffer_store(buffer, value, [self.h, place])


class KeyBlock(_Block):
    """A block of keys and values of one head: dK and dV, of all its query heads or of one."""

    def __init__(
        self, gpu: Gpu, stored: Stored, thread: Expr, subgroups: int, place: tuple
    ) -> None:
        super().__init__(stored, thread, subgroups, place)
        self.maxima = reduction(gpu, self.threads, thread, 2, combine=tirx.max)
        self.columns = [shared([self.streamed]) for _ in range(4)]
        self.documents = shared([self.streamed], "int32")

    def emit(self) -> None:
        """Emit the block."""
        heads, stored = self.heads, self.stored
        self.kv = bind(self.h // heads.group) if stored.apart else self.h
        key = heads.heads + self.kv
        self.stage(self.count, self.first, (self.matrix, key), (self.matrix, key + heads.kv_heads))
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
            parts = [stored.pairs(part) for part in stored.adjoint.parts]
            self.store(i, parts[0], self.h, self.dkey, factor_key)
            self.store(i, parts[1], self.h, self.dvalue, self.down_value)
            return
        out = stored.pairs(stored.out)
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
        end = ceil_div(self.packed.context, self.streamed)
        with loop(end, self.first // self.streamed) as index:
            block = bind(index * self.streamed)
            # Documents that begin after these keys see none of them.
            seen = self.packed.starts[self.b, block] < self.first + self.count
            when_all(seen, lambda: self._queries(h, block))

    def _stage_columns(self, h: Expr, block: Expr) -> None:
        """Emit the copy of what is known of each query."""
        stored, context = self.stored, self.packed.context

        def copy(column: Expr) -> None:
            token = bind(T.min(block + column, context - 1))
            place = bind(self.begin + token)
            undo, start = bind(stored.halves.undo[place]), self.packed.starts[self.b, token]
            logarithm, mean, _ = (buffer[h, place] for buffer in stored.statistics())
            values = (logarithm, undo * self.up_value, undo * self.up_key, mean * self.up_key)
            for buffer, value in zip(self.columns, values, strict=True):
                T.buffer_store(buffer, value, [column])
            own = T.if_then_else(block + column < context, start, NEVER)
            T.buffer_store(self.documents, own, [column])

        for step in range(ceil_div(self.streamed, self.threads)):
            column = bind(self.thread + step * self.threads)
            if (step + 1) * self.threads <= self.streamed:
                copy(column)
            else:
                when(column < self.streamed, partial(copy, column))

    def _queries(self, h: Expr, block: Expr) -> None:
        self.stage(self.streamed, block, (self.matrix, h), (self.outer, h))
        self._stage_columns(h, block)
        barrier()
        # A subgroup whose keys all follow the queries has nothing to do.
        seen = self.first + self.own < block + self.streamed
        when(seen, partial(self._add_queries, block))
        barrier()

    def _add_queries(self, block: Expr) -> None:
        heads = self.heads
        scores, dweights = (
            _products(left, rows.rows, self.streamed, heads.head_dim)
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
        _mix(self.dvalue, scores, self.other.rows, heads.head_dim, self.streamed)
        _mix(self.dkey, dweights, self.one.rows, heads.head_dim, self.streamed)
