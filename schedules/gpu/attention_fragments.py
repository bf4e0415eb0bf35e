"""Attention over rows of packed documents on matrix units whose fragments are known.

As `attention.py`, with scores, weights and sums in the registers of the subgroups: each has 16
queries, and all those of a work-group stream past the same blocks of keys and values. What comes
behind is quantised, so 16 bits would not do: each factor is the sum of two 16-bit floats, of 22
bits together, and a product three: that of both rests is below what float32 has.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, when
from .attention_heads import LOG2_E, MASKED, Columns, Heads, RotatedColumns
from .attention_rows import LARGEST, PackedRows, is_static, key_blocks
from .attention_vectors import view
from .fragments import DEPTH, EIGHT, ROWS, HalfRows, Lane, RowSums, clamped, half_vectors
from .fragments import quad_max, quad_sum
from .kernel import Gpu, barrier, build, ceil_div, launch, loop, registers
from .ternary_tile import cores
from .vectors import LANES, held, lane

SUBGROUPS = (4, 2, 1)
"""Subgroups of a work-group, the first with which there are work-groups for every core."""
VALUES = 16.0
"""Factor on values on their way to 16 bits, so that the rest of small ones has bits as well."""
BLOCKS = (64, 32, 16)
"""Keys of a block, the first that fits into shared memory."""


def fragments(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out attention; None without fragments, or for heads that they do not divide."""
    if not is_static(function.params[1]) or "fragments" not in target.features:
        return None
    gpu, heads = Gpu(target), Heads.of(parameters, target)
    if heads.head_dim % DEPTH:
        return None
    keys = next((n for n in BLOCKS if _bytes(heads, n) <= heads.shared_bytes), None)
    if keys is None:
        return None

    def body(qkv: Buffer, starts: Buffer, rope: Buffer, out: Buffer) -> None:
        packed = PackedRows(heads, qkv, starts, rope)
        tasks = packed.batch * heads.heads
        subgroups = subgroups_for(gpu, tasks, packed.context, keys)
        blocks = ceil_div(packed.context, ROWS * subgroups)
        with launch([tasks, blocks], [subgroups * gpu.subgroup]) as (task, block, thread):
            b, h = bind(task // heads.heads), bind(task % heads.heads)
            # The last queries see the most keys, so they begin first.
            first = bind((blocks - 1 - block) * (ROWS * subgroups))
            _Block(packed, thread, subgroups, keys, (b, h, first)).emit(out)

    return build(function, body)


def subgroups_for(gpu: Gpu, tasks: int, context: int, rows: int) -> int:
    """Return the subgroups of a work-group, for so many rows of shared memory: as many as leave
    work for nearly every core."""

    def groups(subgroups: int) -> int:
        return tasks * ceil_div(context, ROWS * subgroups)

    fitting = [n for n in SUBGROUPS if n * ROWS <= rows]
    return next((n for n in fitting if 4 * groups(n) >= 3 * cores(gpu)), 1)


def _bytes(heads: Heads, keys: int) -> int:
    """Return the shared memory of a block of keys and values."""
    return 2 * keys * (heads.head_dim // EIGHT * 2 + 1) * 16


class Split:
    """A block of rows of a head in shared memory, each element as two 16-bit floats.

    Parameters
    ----------
    heads : Heads
        The shape.
    place : Lane
        The thread's place.
    thread : PrimExpr
        The thread's index.
    threads, count : int
        Threads of the work-group, and rows.
    """

    def __init__(self, heads: Heads, place: Lane, thread: Expr, threads: int, count: int) -> None:
        self.heads, self.thread, self.threads, self.count = heads, thread, threads, count
        self.vectors = heads.head_dim // EIGHT
        self.rows = HalfRows(place, count, 2 * self.vectors)

    def stage(self, source: Columns, first: Expr, last: Expr, factor: float = 1.0) -> None:
        """Emit the copy of the rows from `first` on, of which those past `last` repeat it."""
        half = self.vectors // 2
        items = self.count * half
        loaded = []
        for step in range(ceil_div(items, self.threads)):
            item = bind(self.thread + step * self.threads)
            place = item if (step + 1) * self.threads <= items else bind(T.min(item, items - 1))
            row, vector = bind(place // half), bind(place % half)
            token = bind(T.min(first + row, last))
            pairs = [source.pair(token, vector * 2 + i) for i in range(2)]
            loaded.append((item, row, vector, pairs))
        for step, (item, row, vector, pairs) in enumerate(loaded):
            put = partial(self._put, row, vector, pairs, factor)
            put() if (step + 1) * self.threads <= items else when(item < items, put)

    def _put(self, row: Expr, vector: Expr, pairs: list[tuple[Expr, Expr]], factor: float) -> None:
        for part in range(2):
            values = [
                held(clamped(lane(pair[part], c) * T.float32(factor), LARGEST))
                for pair in pairs
                for c in range(LANES)
            ]
            high, rest = half_vectors(values)
            place = vector + part * (self.vectors // 2)
            self.rows.put(row, place, high)
            self.rows.put(row, place + self.vectors, rest)


class Softmax:
    """The running softmax of a subgroup's 16 rows, of which each thread has two."""

    def __init__(self) -> None:
        self.top, self.sum = registers([2]), registers([2])
        for i in range(2):
            T.buffer_store(self.top, T.float32(MASKED), [i])
            T.buffer_store(self.sum, T.float32(0.0), [i])

    def update(self, scores: RowSums) -> list[Expr]:
        """Emit the exponentials of scores in units of log 2, in their place.

        Returns
        -------
        list of PrimExpr
            The factors on what was summed before.
        """
        tops = registers([2])
        for i in range(2):
            top = T.float32(MASKED)
            for j in range(scores.count):
                values = scores.get(j)
                top = T.max(top, T.max(values[2 * i], values[2 * i + 1]))
                top = held(top)
            T.buffer_store(tops, T.max(self.top[i], quad_max(top)), [i])
        factors = [held(T.exp2(self.top[i] - tops[i])) for i in range(2)]
        sums = registers([2])
        for i in range(2):
            T.buffer_store(sums, T.float32(0.0), [i])
        for j in range(scores.count):
            values = [held(T.exp2(v - tops[c // 2])) for c, v in enumerate(scores.get(j))]
            scores.put(j, values)
            for i in range(2):
                T.buffer_store(sums, sums[i] + (values[2 * i] + values[2 * i + 1]), [i])
        for i in range(2):
            T.buffer_store(self.sum, self.sum[i] * factors[i] + sums[i], [i])
            T.buffer_store(self.top, tops[i], [i])
        return factors

    def inverse(self) -> list[Expr]:
        """Return the reciprocals of the rows' sums of exponentials."""
        return [held(T.float32(1.0) / quad_sum(self.sum[i])) for i in range(2)]


class _Block:
    """A work-group's queries; make it at the top of a launch."""

    def __init__(
        self,
        packed: PackedRows,
        thread: Expr,
        subgroups: int,
        keys: int,
        place: tuple[Expr, Expr, Expr],
    ) -> None:
        self.packed, self.heads, (self.b, self.h, self.first) = packed, packed.heads, place
        self.lane, self.count, self.keys = Lane(), subgroups * ROWS, keys
        threads = subgroups * 32
        self.key, self.value = (
            Split(self.heads, self.lane, thread, threads, keys) for _ in range(2)
        )
        self.query = [
            registers([self.heads.head_dim // DEPTH], "int32x4") for _ in range(2)
        ]
        last, own = packed.context - 1, bind(self.first + self.lane.subgroup * ROWS)
        self.queries = [bind(own + self.lane.row + 8 * i) for i in range(2)]
        self.seen = [bind(T.min(query, last)) for query in self.queries]
        self.starts = [bind(packed.starts[self.b, query]) for query in self.seen]

    def emit(self, out: Buffer) -> None:
        """Emit the block."""
        heads, packed = self.heads, self.packed
        self._load_queries()
        softmax, mixture = Softmax(), RowSums(heads.head_dim)
        mixture.clear()
        kv = bind(self.h // heads.group)
        begin, end = key_blocks(packed, self.b, self.first, self.count, self.keys)
        last = packed.context - 1
        with loop(end, begin) as index:
            block = bind(index * self.keys)
            self.key.stage(packed.key(self.b, kv), block, last)
            self.value.stage(packed.value(self.b, kv), block, last, VALUES)
            barrier()
            scores = self._scores()
            self._mask(scores, block)
            mixture.scale(*softmax.update(scores))
            self._mix(mixture, scores)
            barrier()
        factors = [held(f * T.float32(1.0 / VALUES)) for f in softmax.inverse()]
        pairs = view(out, [packed.batch * packed.context, heads.heads * heads.head_dim // 2],
                     "float32x2")
        for i, query in enumerate(self.queries):
            when(query < packed.context, partial(self._store, pairs, mixture, factors[i], i))

    def _store(self, out: Buffer, mixture: RowSums, factor: Expr, i: int) -> None:
        row = bind(self.b * self.packed.context + self.queries[i])
        column = bind((self.h * self.heads.head_dim + self.lane.column) // 2)
        for j in range(mixture.count):
            a, b = mixture.get(j)[2 * i : 2 * i + 2]
            T.buffer_store(out, pair_of(a * factor, b * factor), [row, column + 4 * j])

    def _load_queries(self) -> None:
        """Emit the queries' way through the keys' memory into registers."""
        self.key.stage(self.packed.query(self.b, self.h), self.first, self.packed.context - 1)
        barrier()
        own = bind(self.lane.subgroup * ROWS)
        for part in range(2):
            for k in range(self.heads.head_dim // DEPTH):
                vector = 2 * k + part * self.key.vectors
                T.buffer_store(self.query[part], self.key.rows.left(own, vector), [k])
        barrier()

    def _scores(self) -> RowSums:
        """Emit the products of the queries and a block of keys."""
        scores, rows = RowSums(self.keys), self.key.rows
        scores.clear()
        for k in range(self.heads.head_dim // DEPTH):
            high, rest = (self.query[part][k] for part in range(2))
            for pair in range(self.keys // 16):
                key = rows.right(16 * pair, 2 * k)
                key_rest = rows.right(16 * pair, 2 * k + self.key.vectors)
                scores.add(pair, rest, key)
                scores.add(pair, high, key_rest)
                scores.add(pair, high, key)
        return scores

    def _mask(self, scores: RowSums, block: Expr) -> None:
        """Emit the scale of the scores, in units of log 2, and hide what is not seen."""
        factor = T.float32(self.heads.scale * LOG2_E)
        for j in range(scores.count):
            found = []
            for c, value in enumerate(scores.get(j)):
                key = bind(block + (j * 8 + c % 2) + self.lane.column)
                query, start = self.seen[c // 2], self.starts[c // 2]
                seen = T.And(key <= query, key >= start)
                found.append(held(T.if_then_else(seen, value * factor, T.float32(MASKED))))
            scores.put(j, found)

    def _mix(self, mixture: RowSums, weights: RowSums) -> None:
        """Emit the sums of the values that the weights weigh."""
        rows = self.value.rows
        for k in range(self.keys // DEPTH):
            high = weights.left(k)
            rest = weights.left_rest(k, high)
            for pair in range(self.heads.head_dim // 16):
                value = rows.turned(16 * k, 2 * pair)
                value_rest = rows.turned(16 * k, 2 * pair + self.value.vectors)
                mixture.add(pair, rest, value)
                mixture.add(pair, high, value_rest)
                mixture.add(pair, high, value)


def pair_of(low: Expr, high: Expr) -> Expr:
    """Return two float32 as a vector."""
    return T.call_pure_extern("float32x2", "(float2)", low, high)
