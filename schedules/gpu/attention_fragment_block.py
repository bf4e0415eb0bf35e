"""What both kinds of blocks of attention's adjoint have where fragments are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, when
from .attention_adjoint import Adjoint
from .attention_fragment_tile import pair_of, pairs_of, put_row
from .attention_heads import Heads
from .attention_vectors import view
from .copies import close_copies, wait_copies
from .fragments import DEPTH, EIGHT, ROWS, HalfRows, Lane, RowSums
from .halves import Halves
from .kernel import Gpu, barrier, ceil_div, loop, registers, scratch
from .ternary_tile import cores
from .vectors import fours, held, lane

STREAMED = {96: 32}
"""Rows of a block that stream past others, by the widest heads: their products are in registers."""
NARROWEST = 16
"""The same of wider heads."""
SUBGROUPS = (4, 2, 1)
"""Subgroups of a work-group."""


def streamed(heads: Heads) -> int:
    """Return the rows of a block that streams past."""
    return next((n for widest, n in STREAMED.items() if heads.head_dim <= widest), NARROWEST)


def fits(heads: Heads) -> bool:
    """Tell whether shared memory holds two blocks, and what is known of their rows."""
    rows = streamed(heads)
    size = 2 * max(2 * rows, SUBGROUPS[0] * ROWS) * (heads.head_dim // EIGHT + 1) * 16
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


class _Rows:
    """A block of rows of a head in shared memory, of one 16-bit float an element."""

    def __init__(
        self, heads: Heads, place: Lane, thread: Expr, threads: int, count: int, memory: int
    ) -> None:
        self.heads, self.thread, self.threads, self.count = heads, thread, threads, count
        self.vectors = heads.head_dim // EIGHT
        self.rows = HalfRows(place, memory, self.vectors)

    def ask(
        self, count: int, matrix: Buffer, row: Expr, last: Expr, head: Expr, place: Expr = 0
    ) -> None:
        """Ask for the rows of a head from `row` on, of which those past `last` repeat it.

        They go to the rows from `place` on.
        """
        items = count * self.vectors
        for step in range(ceil_div(items, self.threads)):
            item = bind(self.thread + step * self.threads)
            own, vector = bind(item // self.vectors), bind(item % self.vectors)
            index = T.min(row + own, last), head * self.vectors + vector
            ask = partial(self.rows.ask, place + own, vector, matrix, *index)
            ask() if (step + 1) * self.threads <= items else when(item < items, ask)

    def left(self, row: Expr) -> Buffer:
        """Emit the reading of 16 rows as left factors, and return them."""
        factors = registers([self.heads.head_dim // DEPTH], "int32x4")
        for k in range(self.heads.head_dim // DEPTH):
            T.buffer_store(factors, self.rows.left(row, 2 * k), [k])
        return factors


def products(left: Buffer, rows: HalfRows, begin: Expr, columns: int, depth: int) -> RowSums:
    """Emit the products of 16 rows with the rows from `begin` on in shared memory."""
    sums = RowSums(columns)
    sums.clear()
    for k in range(depth // DEPTH):
        for pair in range(columns // 16):
            sums.add(pair, left[k], rows.right(begin + 16 * pair, 2 * k))
    return sums


def mix(
    sums: RowSums, weights: RowSums, rows: HalfRows, begin: Expr, columns: int, depth: int
) -> None:
    """Emit the addition of the sums of the rows from `begin` on that weights weigh."""
    for k in range(depth // DEPTH):
        left = weights.left(k)
        for pair in range(columns // 16):
            sums.add(pair, left, rows.turned(begin + 16 * k, 2 * pair))


class Block:
    """What both kinds of blocks have; make it at the top of a launch."""

    def __init__(self, stored: Stored, thread: Expr, subgroups: int, place: tuple) -> None:
        self.stored, self.packed, self.heads = stored, stored.packed, stored.heads
        self.thread, (self.b, self.h, self.first) = thread, place
        self.lane, self.count = Lane(), subgroups * ROWS
        self.threads, self.streamed = subgroups * 32, streamed(stored.heads)
        # Two blocks of rows that stream past, of which one is on its way.
        memory = max(self.count, 2 * self.streamed)
        self.one, self.other = (
            _Rows(self.heads, self.lane, thread, self.threads, self.streamed, memory)
            for _ in range(2)
        )
        self.matrix, self.outer = stored.rows(), stored.outer()
        self.begin = bind(self.b * self.packed.context)
        self.last = bind(self.begin + self.packed.context - 1)
        self.own = bind(self.lane.subgroup * ROWS)
        self.tokens = [bind(self.first + self.own + self.lane.row + 8 * i) for i in range(2)]

    def ask(self, count: int, first: Expr, place: Expr, *sources: tuple[Buffer, Expr]) -> None:
        """Ask for two blocks of rows, of pairs of a matrix and a head, as a group of copies."""
        row = bind(self.begin + first)
        for block, (matrix, head) in zip((self.one, self.other), sources, strict=True):
            block.ask(count, matrix, row, self.last, head, place)
        close_copies()

    def stream(
        self,
        blocks: tuple[Expr, Expr],
        sources: Sequence[tuple[Buffer, Expr]],
        body: Callable[[Expr, Expr], None],
        before: Callable[[Expr], None] | None = None,
    ) -> None:
        """Emit ``body(first row, where it is)`` for the blocks from one to before another.

        The next block is on its way meanwhile. ``before(first row)`` is emitted before a barrier.
        """
        begin, end = blocks
        self.ask(self.streamed, begin * self.streamed, 0, *sources)
        with loop(end, begin) as index:
            block, turn = bind(index * self.streamed), bind((index - begin) % 2)
            # The last turn asks for its own block again: cheaper than a branch.
            after = bind(T.min(index + 1, end - 1) * self.streamed)
            self.ask(self.streamed, after, (1 - turn) * self.streamed, *sources)
            if before is not None:
                before(block)
            wait_copies(1)
            barrier()
            body(block, bind(turn * self.streamed))
            barrier()
        # Nothing may arrive where others are asked for next.
        wait_copies(0)

    def lefts(self) -> tuple[Buffer, Buffer]:
        """Emit the reading of the block's own rows, which were asked for, into registers."""
        wait_copies(0)
        barrier()
        found = self.one.left(self.own), self.other.left(self.own)
        barrier()
        return found

    def store(self, i: int, buffer: Buffer, head: Expr, sums: RowSums, factor: Expr) -> None:
        """Emit the store of one of the thread's rows, as it is."""
        column = head * self.heads.head_dim + self.lane.column
        put_row(buffer, bind(self.begin + self.tokens[i]), column, sums, i, factor)

    def store_rotated(
        self, i: int, buffer: Buffer, head: Expr, sums: RowSums, factor: Expr
    ) -> None:
        """Emit the store of one of the thread's rows, rotated back."""
        token, half = self.tokens[i], sums.count // 2
        position = bind(token - self.packed.starts[self.b, token])
        rope = pairs_of(self.stored.rope)
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
