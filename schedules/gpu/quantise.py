"""Tokens as 8-bit integers, and their products with the adapters' factor A.

A token is ``q * bound / 127`` with ``bound = max(max |x|, 1e-5)`` and ``q`` in [-127, 127], four to
an int32 word. One launch does both, a work-group for a few tokens and one adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..linear import Linear
from ..tir import Buffer, Expr, bind, shape, static, when
from .kernel import Gpu, ceil_div, dot4, launch, loop, registers, scratch
from .prologue import Prologue, squares
from .reduction import reduction
from .vectors import LANES, fours, held, lane, only, power_of_two

EPSILON = 1e-5
"""Smallest absmax of a token."""
LEVELS = 127.0
ONES = 0x01010101
"""The word whose product with four bytes is their sum."""
SUMS = 16
"""Products with rows of A that a thread sums at once."""
RANKS = 8
"""Rows of A among them at most."""
MANY = 1024
"""From this many tokens on, a row of A is worth holding for more of them."""
Order = Callable[[Expr], Expr]
"""Where a token's word of four columns goes, of its place among the others."""


def divide(numerator: Expr, denominator: Expr) -> Expr:
    """Return the correctly rounded quotient of two normal float32, which ``/`` need not be.

    Newton's steps after Markstein 1990 ("Computation of elementary functions on the IBM RISC
    System/6000 processor"); the quotient decides to which integer a value is rounded.
    """

    def fma(a: Expr, b: Expr, c: Expr) -> Expr:
        return held(T.call_pure_extern("float32", "fma", a, b, c))

    minus = -denominator
    inverse = held(T.float32(1.0) / denominator)
    inverse = fma(fma(minus, inverse, T.float32(1.0)), inverse, inverse)
    quotient = held(numerator * inverse)
    return fma(fma(minus, quotient, numerator), inverse, quotient)


def bound_of(absmax: Expr) -> Expr:
    """Return what a token's largest magnitude counts as."""
    return held(tirx.max(absmax, T.float32(EPSILON)))


def largest(vector: Expr) -> Expr:
    """Return the largest magnitude of a vector."""
    a, b, c, d = (T.fabs(lane(vector, i)) for i in range(LANES))
    return tirx.max(tirx.max(a, b), tirx.max(c, d))


def word(vector: Expr, factor: Expr) -> Expr:
    """Return four values times ``127 / bound`` as rounded bytes of an int32, half to even."""
    scaled = vector * T.broadcast(factor, LANES)
    octets = T.call_pure_extern(f"int8x{LANES}", "convert_char4_sat_rte", scaled)
    return held(T.call_pure_extern("int32", "as_int", octets))


def dot(left: Expr, right: Expr, total: Expr) -> Expr:
    """Return `total` plus the product of two vectors."""
    for i in range(LANES):
        total = total + lane(left, i) * lane(right, i)
    return total


class Tokens:
    """The quantised tokens and their products with A, in device memory between launches.

    Attributes
    ----------
    words : Buffer
        ``(T', K / 4)`` int32; T' is T rounded up to a multiple of `multiple`, and what lies beyond
        T is of no use.
    step : Buffer
        ``(T',)`` float32, ``bound / 127``.
    sum : Buffer
        ``(T',)`` int32, the sum of a token's integers.
    down : Buffer or None
        ``(T', S', r)`` float32, ``lora_scale x A^T``.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    x : Buffer
        ``(T, K)`` float32.
    multiple : int
        The tokens that the product takes together.
    a : Buffer or None
        ``(S', r, K)`` float32.
    lora_input : Buffer
        ``(T, K)`` float32, the adapters' input.
    fused : Linear, optional
        Whose gate and norm x passes first, with `multiple` 1; `lora_input` is x then.
    order : callable, optional
        Where the words go; None for the order of the columns.
    """

    def __init__(
        self,
        gpu: Gpu,
        x: Buffer,
        multiple: int,
        a: Buffer | None,
        lora_input: Buffer,
        fused: Linear | None = None,
        order: Order | None = None,
    ) -> None:
        self.order = order or (lambda place: place)
        self.gpu, self.x, self.a, self.lora_input, self.fused = gpu, x, a, lora_input, fused
        self.tokens, self.columns = shape(x)
        if fused is not None:
            self.columns = fused.columns
        count = static(self.tokens)
        self.few = multiple == 1
        self.height = min(4 if count is not None and count >= MANY else 2, multiple)
        self.ranks = min(RANKS, SUMS // self.height)
        self.padded = ceil_div(self.tokens, multiple) * multiple
        self.words = scratch([self.padded, self.columns // LANES], "int32")
        self.step = scratch([self.padded])
        self.sum = scratch([self.padded], "int32")
        self.down: Buffer = None
        if a is not None:
            self.adapters, self.rank, _ = shape(a)
            self.down = scratch([self.padded, self.adapters, self.rank])

    def emit(self, lora_scale: float) -> None:
        """Emit the launch that fills the buffers."""
        vectors = self.columns // LANES
        threads = min(self.gpu.threads, max(power_of_two(vectors), 32))
        self.threads, self.vectors = threads, vectors
        groups = ceil_div(self.tokens, self.height)
        grid = [groups, 1, 1]
        if self.a is not None:
            # Where there are few tokens, the rows of A are shared by more work-groups, too.
            grid = [groups, self.adapters, ceil_div(self.rank, self.ranks) if self.few else 1]
        with launch(grid, [threads]) as (group, adapter, chunk, thread):
            self.thread = thread
            self.first = bind(group * self.height)
            last = self.tokens - 1
            # A token past the end is the last one again, and goes to a place past the end.
            self.rows = [bind(tirx.min(self.first + i, last)) for i in range(self.height)]
            self._open()
            self._quantise(tirx.all(adapter == 0, chunk == 0))
            if self.a is not None:
                self._down(adapter, chunk, lora_scale)

    def _place(self, step: Expr) -> tuple[Expr, Expr | None]:
        """Return a thread's vector of a step, and whether there is one (None: always)."""
        place = bind(step * self.threads + self.thread)
        if self.vectors % self.threads == 0:
            return place, None
        return bind(tirx.min(place, self.vectors - 1)), bind(place < self.vectors)

    def _open(self) -> None:
        """Emit what the reading of the tokens needs; sets how their vectors are read."""
        if self.fused is None:
            x, other = fours(self.x), fours(self.lora_input)
            self.value = lambda i, place: bind(x[self.rows[i], place])
            self.lora_value = lambda i, place: bind(other[self.rows[i], place])
            return
        prologue = Prologue(self.gpu, self.fused, self.threads, self.thread)
        if self.fused.norm is not None:
            total = registers([1])
            T.buffer_store(total, T.float32(0.0), [0])
            with loop(ceil_div(self.vectors, self.threads)) as step:
                place, inside = self._place(step)
                value = only(inside, prologue.gated(self.rows[0], place))
                T.buffer_store(total, total[0] + squares(value), [0])
            prologue.sum_squares(total[0])
        self.value = self.lora_value = lambda i, place: prologue.normed(
            prologue.gated(self.rows[i], place), prologue.factor(place)
        )

    def _quantise(self, mine: Expr) -> None:
        """Emit the tokens' words, steps and sums; the work-groups where `mine` holds keep them."""
        height = self.height
        top, total = registers([height]), registers([height], "int32")
        for i in range(height):
            T.buffer_store(top, T.float32(0.0), [i])
            T.buffer_store(total, 0, [i])
        with loop(ceil_div(self.vectors, self.threads)) as step:
            place, _ = self._place(step)
            for i in range(height):
                value = self.value(i, place)
                T.buffer_store(top, tirx.max(top[i], largest(value)), [i])
        maxima = reduction(self.gpu, self.threads, self.thread, height, combine=tirx.max)
        maxima.put([top[i] for i in range(height)])
        bounds = [bound_of(maxima.get(i)) for i in range(height)]
        factors = [divide(T.float32(LEVELS), bound) for bound in bounds]
        with loop(ceil_div(self.vectors, self.threads)) as step:
            place, inside = self._place(step)
            for i in range(height):
                packed = word(self.value(i, place), factors[i])
                if inside is not None:
                    packed = bind(tirx.Select(inside, packed, 0))
                T.buffer_store(total, dot4(packed, ONES, total[i]), [i])
                kept = mine if inside is None else tirx.all(inside, mine)
                at = [self.first + i, self.order(place)]
                when(kept, partial(T.buffer_store, self.words, packed, at))
        sums = reduction(self.gpu, self.threads, self.thread, height, "int32")
        sums.put([total[i] for i in range(height)])

        def finish() -> None:
            for i in range(height):
                T.buffer_store(self.step, divide(bounds[i], T.float32(LEVELS)), [self.first + i])
                T.buffer_store(self.sum, sums.get(i), [self.first + i])

        when(tirx.all(mine, self.thread == 0), finish)

    def _down(self, adapter: Expr, chunk: Expr, lora_scale: float) -> None:
        """Emit the products with one adapter's rows of A, a few rows at a time."""
        count = self.height * self.ranks
        sums = reduction(self.gpu, self.threads, self.thread, count)
        total = registers([count])

        def rows(chunk: Expr) -> None:
            self._multiply(adapter, chunk, total)
            sums.put([total[i] for i in range(count)])
            j = bind(chunk * self.ranks + self.thread % self.ranks)

            def put() -> None:
                value = sums.get(self.thread) * T.float32(lora_scale)
                token = self.first + self.thread // self.ranks
                T.buffer_store(self.down, value, [token, adapter, j])

            when(tirx.all(self.thread < count, j < self.rank), put)

        if self.few:
            rows(chunk)
        else:
            with loop(ceil_div(self.rank, self.ranks)) as index:
                rows(index)

    def _multiply(self, adapter: Expr, chunk: Expr, total: Buffer) -> None:
        """Emit a thread's part of the products with a few rows of A."""
        a = fours(self.a)
        for i in range(self.height * self.ranks):
            T.buffer_store(total, T.float32(0.0), [i])
        ranks = [bind(tirx.min(chunk * self.ranks + j, self.rank - 1)) for j in range(self.ranks)]
        with loop(ceil_div(self.vectors, self.threads)) as step:
            place, inside = self._place(step)
            values = [only(inside, self.lora_value(i, place)) for i in range(self.height)]
            for j, rank in enumerate(ranks):
                factor = bind(a[adapter, rank, place])
                for i, value in enumerate(values):
                    at = i * self.ranks + j
                    T.buffer_store(total, dot(value, factor, total[at]), [at])
