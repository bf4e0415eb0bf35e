"""The ternary product of a few tokens: memory is the limit, so the matrix streams by once.

A work-group has a few tiles of 16 rows of one projection. Its threads read 16 bytes each, words of
four rows, of neighbouring columns at once; their sums meet in shared memory. The
tokens' integers come from an earlier launch, or of the work-group's own making.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..decisions import choose
from ..linear import Linear
from ..ternary import TILE, Segment, by_segment
from ..tir import Expr, bind, when
from .adapter import Up
from .kernel import Gpu, barrier, ceil_div, dot4, launch, loop, registers, shared
from .packed import codes
from .quantise import ONES, Tokens
from .vectors import LANES, four, fours, held, lane, only, power_of_two

AHEAD = 8
"""Loads of a thread under way at once, at most, by default."""
TILES = 8
"""Tiles of a work-group, at most."""


@dataclass(frozen=True)
class Layout:
    """How a launch is divided.

    Attributes
    ----------
    tiles : int
        Tiles of 16 rows of a work-group, which divide the tiles of every projection.
    threads : int
        Threads of a work-group, at least 16 for each tile.
    steps : int
        Words of a row.
    most : int
        Loads of a thread under way at once, at most.
    """

    tiles: int
    threads: int
    steps: int
    most: int = AHEAD

    @property
    def rows(self) -> int:
        """Rows of a work-group."""
        return self.tiles * TILE

    @property
    def across(self) -> int:
        """Threads for different rows."""
        return self.rows // LANES

    @property
    def parts(self) -> int:
        """Threads for different columns of the same rows."""
        return self.threads // self.across

    @property
    def turns(self) -> int:
        """Times that a thread's loads are waited for."""
        return ceil_div(ceil_div(self.steps, self.parts), self.most)

    @property
    def ahead(self) -> int:
        """Loads of a thread under way at once."""
        return ceil_div(ceil_div(self.steps, self.parts), self.turns)


def layout(gpu: Gpu, parts: list[Segment], steps: int, groups: int, most: int) -> Layout:
    """Return the layout: by default with the most tiles a work-group that leaves `groups` of these.

    How many threads share the columns, `most` at most by default, and how many loads each has under
    way, are decisions, too.
    """
    total = parts[-1].end // TILE
    valid = [
        tiles
        for tiles in (1, 2, 4, TILES)
        if all((part.end - part.begin) % (tiles * TILE) == 0 for part in parts)
    ]
    tiles = choose("tiles", valid, max(t for t in valid if t == 1 or total // t >= groups))
    across = tiles * TILE // LANES
    least = max(4 * across, 32)
    usual = min(max(most, least), max(across * power_of_two(steps), least))
    counts = [count for count in (32, 64, 128, 256, 512) if least <= count <= gpu.threads]
    threads = choose("threads", counts, usual) if usual in counts else usual
    return Layout(tiles, threads, steps, choose("ahead", (4, AHEAD, 16), AHEAD))


class Source(Protocol):
    """Where a work-group has its tokens from."""

    @abstractmethod
    def prepare(self, thread: Expr, row: Expr) -> None:
        """Emit what comes before the product, for the work-group whose first row is `row`."""

    @abstractmethod
    def integers(self, token: int, step: Expr) -> list[Expr]:
        """Return a token's integers at one place of the matrix, four to a word."""

    @abstractmethod
    def step(self, token: int) -> Expr:
        """Return what an integer of a token stands for, float32."""

    @abstractmethod
    def down(self, token: int, slot: Expr, rank: Expr) -> Expr:
        """Return an element of a token's product with the factor A of an adapter."""


class Stored:
    """Tokens that an earlier launch left in memory."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def prepare(self, thread: Expr, row: Expr) -> None:
        """Say how the words are read."""
        self.words = self.tokens.reader()

    def integers(self, token: int, step: Expr) -> list[Expr]:
        """Return stored words."""
        return self.words(token, step)

    def step(self, token: int) -> Expr:
        """Return the stored step."""
        return self.tokens.step[token]

    def down(self, token: int, slot: Expr, rank: Expr) -> Expr:
        """Return the stored product."""
        return self.tokens.down[token, slot, rank]


class RowProduct:
    """One launch: the product of a few tokens, its scale, the adapters and the residual.

    Parameters
    ----------
    layout : Layout
        The work-groups.
    linear : Linear
        The arguments; their tokens are few and their number static.
    """

    def __init__(self, layout: Layout, linear: Linear) -> None:
        self.layout, self.parts, self.packed = layout, linear.parts, linear.packed
        self.packing = linear.packing
        self.scales, self.b, self.residual = linear.scales, linear.b, linear.residual
        self.y, self.tokens = linear.y, int(linear.y.shape[0])

    def emit(self, source: Source) -> None:
        """Emit the launch."""
        layout = self.layout
        with launch([self.parts[-1].end // layout.rows], [layout.threads]) as (group, thread):
            self.thread = thread
            self.first = bind(group * layout.rows)
            self.part, side = bind(thread // layout.across), bind(thread % layout.across)
            self.row = bind(self.first + side * LANES)
            # What does not depend on the tokens is under way while they are prepared.
            self.words = registers([layout.ahead], f"int32x{LANES}")
            self._read(0)
            self._read_finish()
            source.prepare(thread, self.first)
            self._multiply(source)
            self._up(source)
            self._finish(source)

    def _step(self, turn: Expr, u: int) -> tuple[Expr, Expr | None]:
        """Return the place of a load, and whether it exists (None: always)."""
        layout = self.layout
        step = bind((turn * layout.ahead + u) * layout.parts + self.part)
        if layout.steps % (layout.ahead * layout.parts) == 0:
            return step, None
        return bind(tirx.min(step, layout.steps - 1)), bind(step < layout.steps)

    def _read(self, turn: Expr) -> None:
        packed, high, low = fours(self.packed), self.row // TILE, self.row % TILE // LANES
        for u in range(self.layout.ahead):
            T.buffer_store(self.words, packed[high, self._step(turn, u)[0], low], [u])

    def _read_finish(self) -> None:
        """Emit the reading of what the end of the launch needs: scale, residual, adapters."""
        self.scale = bind(by_segment(self.parts, self.first, lambda p: self.scales[p.index]))
        row = bind(self.first + tirx.min(self.thread, self.layout.rows - 1))
        if self.residual is not None:
            self.kept = [bind(self.residual[t, row]) for t in range(self.tokens)]
        if self.b is not None:
            self.up = Up(self.parts, self.b, self.row)
            self.factor = self.up.factor(bind(tirx.min(self.part, self.up.rank - 1)))

    def _multiply(self, source: Source) -> None:
        """Emit a thread's exact sums of four rows."""
        layout = self.layout
        self.sums = registers([self.tokens * LANES], "int32")
        for i in range(self.tokens * LANES):
            T.buffer_store(self.sums, 0, [i])

        def turn(index: Expr) -> None:
            held = [bind(self.words[u]) for u in range(layout.ahead)]
            if layout.turns > 1:
                self._read(bind(tirx.min(index + 1, layout.turns - 1)))
            for u, words in enumerate(held):
                self._add(source, words, *self._step(index, u))

        if layout.turns == 1:
            turn(0)
        else:
            with loop(layout.turns) as index:
                turn(index)

    def _add(self, source: Source, words: Expr, step: Expr, inside: Expr | None) -> None:
        """Emit the products of one load; what lies past the last column counts as zero."""
        values, offsets = [], []
        for t in range(self.tokens):
            value = [only(inside, word) for word in source.integers(t, step)]
            total: Expr = 0
            for word in value:
                total = dot4(word, ONES, total)
            values.append(value)
            offsets.append(held(total))
        for c in range(LANES):
            unpacked = codes(lane(words, c), self.packing)
            for t, value in enumerate(values):
                # Codes are W + 1, so the sum of the integers comes off.
                total = self.sums[t * LANES + c] - offsets[t]
                for f, code in enumerate(unpacked):
                    total = dot4(value[f], code, total)
                T.buffer_store(self.sums, total, [t * LANES + c])

    def _up(self, source: Source) -> None:
        """Emit a thread's part of the adapters' outputs: some of the ranks, four rows."""
        if self.b is None:
            return
        up, parts = self.up, self.layout.parts
        self.added = registers([self.tokens], f"float32x{LANES}")
        for t in range(self.tokens):
            T.buffer_store(self.added, T.broadcast(T.float32(0.0), LANES), [t])

        def add(rank: Expr, factor: Expr) -> None:
            for t in range(self.tokens):
                u = T.broadcast(source.down(t, up.slot, rank), LANES)
                T.buffer_store(self.added, self.added[t] + u * factor, [t])

        # A projection without an adapter has no product with A, not even zeros.
        exists = [] if up.adapted is None else [up.adapted]
        when(tirx.all(self.part < up.rank, *exists), lambda: add(self.part, self.factor))
        with loop(ceil_div(up.rank, parts), begin=1) as turn:
            rank = bind(turn * parts + self.part)
            when(tirx.all(rank < up.rank, *exists), lambda: add(rank, up.factor(rank)))

    def _finish(self, source: Source) -> None:
        """Emit the sums over a work-group, the scale, the residual and the store."""
        layout = self.layout
        exact = _Gather(layout, self.thread, "int32")
        added = _Gather(layout, self.thread, "float32") if self.b is not None else None
        for t in range(self.tokens):
            if t:
                barrier()
            exact.put(four([self.sums[t * LANES + c] for c in range(LANES)], "int32"))
            if added is not None:
                added.put(self.added[t])
            barrier()
            exact.fold()
            if added is not None:
                added.fold()
            barrier()

            def store(t: int = t) -> None:
                value = T.Cast("float32", exact.get()) * bind(source.step(t) * self.scale)
                if added is not None:
                    value = value + added.get()
                if self.residual is not None:
                    value = value + self.kept[t]
                T.buffer_store(self.y, value, [t, self.first + self.thread])

            when(self.thread < layout.rows, store)


class _Gather:
    """Sums of every row over the threads that share it, in a fixed order."""

    def __init__(self, layout: Layout, thread: Expr, dtype: str) -> None:
        self.layout, self.thread = layout, thread
        self.values = shared([layout.threads * LANES], dtype)
        self.partial = shared([layout.threads], dtype)

    def put(self, value: Expr) -> None:
        """Emit the store of a thread's four rows."""
        T.buffer_store(fours(self.values), value, [self.thread])

    def fold(self) -> None:
        """Emit the sum of four threads' values of a row by each thread."""
        rows = self.layout.rows
        begin = bind(self.thread // rows * (LANES * rows) + self.thread % rows)
        values = [self.values[begin + i * rows] for i in range(LANES)]
        T.buffer_store(
            self.partial, (values[0] + values[1]) + (values[2] + values[3]), [self.thread]
        )

    def get(self) -> Expr:
        """Return the sum of the row of one of the first threads."""
        rows = self.layout.rows
        total = self.partial[self.thread]
        for i in range(1, self.layout.threads // rows):
            total = total + self.partial[self.thread + i * rows]
        return total
