"""A single token quantised by every work-group for itself, so that decoding takes one launch.

That is cheaper than a launch of its own: the token is a few KiB. Its gate, its norm and its product
with an adapter's factor A are made again by every work-group, too. The last pays up to some rank: A
comes from the device's cache as often as there are work-groups.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..linear import Linear
from ..ternary import by_segment
from ..tir import Buffer, Expr, bind, branch, shape, when
from .kernel import Gpu, barrier, ceil_div, loop, registers, shared
from .prologue import Prologue, squares
from .quantise import RANKS
from .reduction import reduction
from .ternary_rows import Layout
from .token_words import LEVELS, bound_of, divide, dot, integers, largest, word
from .vectors import LANES, fours, only

MEMORY = 23 << 10
"""Bytes of shared memory that all but the token takes."""
HELD = 8
"""Vectors of the norm's weight that a thread holds; more it reads again."""
MOST = 128
"""The largest rank for which A is read by every work-group."""


def fits(gpu: Gpu, columns: int) -> bool:
    """Return whether a token of so many columns fits the memory of a work-group."""
    limits = gpu.target.limits
    return gpu.shared and limits is not None and columns + MEMORY <= limits.shared_bytes


class SingleToken:
    """The token of a work-group; a source of `ternary_rows.RowProduct`.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    layout : Layout
        The work-groups.
    linear : Linear
        The arguments: one token, and adapters of a rank of at most `MOST`.
    """

    def __init__(self, gpu: Gpu, layout: Layout, linear: Linear) -> None:
        self.gpu, self.layout, self.linear = gpu, layout, linear
        self.vectors = linear.columns // LANES

    def prepare(self, thread: Expr, row: Expr) -> None:
        """Emit the reading of the token, its product with A and its quantisation."""
        self.thread, threads = thread, self.layout.threads
        prologue = Prologue(self.gpu, self.linear, threads, thread)
        places = [bind(thread + i * threads) for i in range(ceil_div(self.vectors, threads))]
        inside = [None] * len(places)
        if self.vectors % threads:
            inside[-1] = bind(places[-1] < self.vectors)
            places[-1] = bind(tirx.min(places[-1], self.vectors - 1))
        values = [prologue.gated(0, place) for place in places]
        values[-1] = only(inside[-1], values[-1])
        factors = [prologue.factor(place) for place in places]
        down = None if self.linear.a is None else _Down(self, row, places, values, factors)
        prologue.sum_squares(sum((squares(value) for value in values[1:]), squares(values[0])))
        if down is not None:
            self.u = down.emit(prologue.inverse)
        if len(places) > HELD:
            factors = [prologue.factor(place) for place in places]
        pairs = zip(values, factors, strict=True)
        self._quantise(places, inside, [prologue.normed(*pair) for pair in pairs])

    def _quantise(self, places: list[Expr], inside: list[Expr | None], values: list[Expr]) -> None:
        """Emit the words of the token."""
        maxima = reduction(self.gpu, self.layout.threads, self.thread, combine=tirx.max)
        top = largest(values[0])
        for value in values[1:]:
            top = tirx.max(top, largest(value))
        maxima.put([bind(top)])
        self.bound = bound_of(maxima.get())
        factor = divide(T.float32(LEVELS), self.bound)
        packing = self.linear.packing
        padded = packing.words(self.linear.columns) * packing.digits
        self.words = shared([padded], "int32")

        for place, there, value in zip(places, inside, values, strict=True):
            packed = word(value, factor)
            if there is None:
                T.buffer_store(self.words, packed, [place])
            else:
                when(there, partial(T.buffer_store, self.words, packed, [place]))
        if padded > self.vectors:
            place = self.vectors + self.thread
            clear = partial(T.buffer_store, self.words, 0, [place])
            when(place < padded, clear)
        barrier()
        self.read = integers(self.words, packing)

    def integers(self, token: int, step: Expr) -> list[Expr]:
        """Return the token's integers at one place of the matrix."""
        return self.read(step)

    def step(self, token: int) -> Expr:
        """Return what an integer stands for."""
        return divide(self.bound, T.float32(LEVELS))

    def down(self, token: int, slot: Expr, rank: Expr) -> Expr:
        """Return an element of the product with A."""
        return self.u[rank]


class _Down:
    """The token's product with the factor A of the projection that holds a row.

    The norm's factor is one for all elements and comes last, so that A need not wait for it.
    """

    def __init__(
        self,
        token: SingleToken,
        row: Expr,
        places: list[Expr],
        values: list[Expr],
        factors: list[Expr],
    ) -> None:
        linear, self.thread, self.places = token.linear, token.thread, places
        self.scale, self.a = linear.lora_scale, fours(linear.a)
        self.rank = shape(linear.a)[1]
        self.slot = bind(
            by_segment(linear.parts, row, lambda p: tirx.const(p.adapter or 0, "int32"))
        )
        wanted = self.rank
        if any(part.adapter is None for part in linear.parts):
            wanted = by_segment(linear.parts, row, lambda p: self.rank * int(p.adapter is not None))
        # Barriers must not be in a loop without turns (PoCL 3.1).
        self.turns = bind(tirx.max(ceil_div(wanted, RANKS), 1))
        self.values = [
            value if factor is None else bind(value * factor)
            for value, factor in zip(values, factors, strict=True)
        ]
        self.total = registers([RANKS])
        self.sums = reduction(token.gpu, token.layout.threads, token.thread, RANKS)
        self.u = shared([MOST])
        self._multiply(0)

    def _multiply(self, turn: Expr) -> None:
        """Emit a thread's part of some ranks; of rank 1, as without an adapter, that one alone."""

        def multiply(j: int) -> None:
            rank = bind(tirx.min(turn * RANKS + j, self.rank - 1))
            product: Expr = T.float32(0.0)
            for place, value in zip(self.places, self.values, strict=True):
                product = dot(value, bind(self.a[self.slot, rank, place]), product)
            T.buffer_store(self.total, product, [j])

        def one() -> None:
            multiply(0)
            for j in range(1, RANKS):
                T.buffer_store(self.total, T.float32(0.0), [j])

        def every() -> None:
            for j in range(RANKS):
                multiply(j)

        branch(self.rank == 1, one, every)

    def emit(self, inverse: Expr) -> Buffer:
        """Emit the sums over the work-group; returns the product, which a barrier must follow."""
        scale = T.float32(self.scale) if inverse is None else T.float32(self.scale) * inverse
        with loop(self.turns) as turn:
            self.sums.put([self.total[j] for j in range(RANKS)])
            when(turn + 1 < self.turns, lambda: self._multiply(turn + 1))

            def put() -> None:
                value = self.sums.get(self.thread) * scale
                T.buffer_store(self.u, value, [turn * RANKS + self.thread])

            when(self.thread < RANKS, put)
        return self.u
