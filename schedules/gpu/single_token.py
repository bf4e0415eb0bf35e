"""A single token quantised by every work-group for itself, so that decoding takes one launch.

That is cheaper than a launch of its own: the token is a few KiB. The product with an adapter's
factor A is made again by every work-group, too, which pays up to some rank: A comes from the
device's cache as often as there are work-groups.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..ternary import Segment, by_segment
from ..tir import Buffer, Expr, bind, shape, when
from .kernel import Gpu, barrier, ceil_div, loop, registers, shared
from .quantise import LEVELS, RANKS, bound_of, divide, dot, largest, word
from .reduction import Reduction
from .ternary_rows import Layout
from .vectors import LANES, fours, only

MEMORY = 21 << 10
"""Bytes of shared memory that all but the token takes."""
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
    layout : Layout
        The work-groups.
    parts : list of Segment
        The projections.
    x : Buffer
        ``(1, K)`` float32.
    a : Buffer or None
        ``(S', r, K)`` float32, r at most `MOST`.
    lora_scale : float
        The factor of the product with A.
    """

    def __init__(
        self, layout: Layout, parts: list[Segment], x: Buffer, a: Buffer | None, lora_scale: float
    ) -> None:
        self.layout, self.parts, self.x, self.a = layout, parts, x, a
        self.lora_scale = lora_scale
        self.columns = shape(x)[1]
        self.vectors = self.columns // LANES

    def prepare(self, thread: Expr, row: Expr) -> None:
        """Emit the reading of the token, its product with A and its quantisation."""
        self.thread = thread
        threads, x = self.layout.threads, fours(self.x)
        places = [bind(thread + i * threads) for i in range(ceil_div(self.vectors, threads))]
        inside = [None] * len(places)
        if self.vectors % threads:
            inside[-1] = bind(places[-1] < self.vectors)
            places[-1] = bind(tirx.min(places[-1], self.vectors - 1))
        values = [bind(x[0, place]) for place in places]
        values[-1] = only(inside[-1], values[-1])
        if self.a is not None:
            self._down(row, places, values)
        self._quantise(places, inside, values)

    def _down(self, row: Expr, places: list[Expr], values: list[Expr]) -> None:
        """Emit the product with A of the projection that holds a row."""
        a, rank = fours(self.a), shape(self.a)[1]
        self.u = shared([MOST])
        sums = Reduction(self.layout.threads, self.thread, RANKS)
        slot = bind(by_segment(self.parts, row, lambda p: tirx.const(p.adapter or 0, "int32")))
        wanted = rank
        if any(part.adapter is None for part in self.parts):
            wanted = by_segment(self.parts, row, lambda p: rank * int(p.adapter is not None))
        total = registers([RANKS])
        with loop(bind(ceil_div(wanted, RANKS))) as chunk:
            for j in range(RANKS):
                factor = bind(tirx.min(chunk * RANKS + j, rank - 1))
                product: Expr = T.float32(0.0)
                for place, value in zip(places, values, strict=True):
                    product = dot(value, bind(a[slot, factor, place]), product)
                T.buffer_store(total, product, [j])
            sums.put([total[j] for j in range(RANKS)])

            def put() -> None:
                value = sums.get(self.thread) * T.float32(self.lora_scale)
                T.buffer_store(self.u, value, [chunk * RANKS + self.thread])

            when(self.thread < RANKS, put)

    def _quantise(self, places: list[Expr], inside: list[Expr | None], values: list[Expr]) -> None:
        """Emit the words of the token."""
        maxima = Reduction(self.layout.threads, self.thread, combine=tirx.max)
        top = largest(values[0])
        for value in values[1:]:
            top = tirx.max(top, largest(value))
        maxima.put([bind(top)])
        self.bound = bound_of(maxima.get())
        factor = divide(T.float32(LEVELS), self.bound)
        self.words = shared([self.vectors], "int32")

        for place, there, value in zip(places, inside, values, strict=True):
            packed = word(value, factor)
            if there is None:
                T.buffer_store(self.words, packed, [place])
            else:
                when(there, partial(T.buffer_store, self.words, packed, [place]))
        barrier()
        self.read = fours(self.words)

    def integers(self, token: int, step: Expr) -> Expr:
        """Return 16 of the token's integers."""
        return self.read[step]

    def step(self, token: int) -> Expr:
        """Return what an integer stands for."""
        return divide(self.bound, T.float32(LEVELS))

    def down(self, token: int, slot: Expr, rank: Expr) -> Expr:
        """Return an element of the product with A."""
        return self.u[rank]
