"""Tokens as 8-bit integers, and their products with the adapters' factor A.

A token is ``q * bound / 127`` with ``bound = max(max |x|, 1e-5)`` and ``q`` in [-127, 127], four to
an int32 word. One launch does both, a work-group for a few tokens and one adapter, or all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..decisions import choose_next
from ..linear import Linear
from ..ternary import TWO_BIT, Packing
from ..tir import Buffer, Expr, bind, shape, static, when
from .kernel import Gpu, ceil_div, dot4, launch, loop, registers, scratch
from .operand import VECTOR
from .prologue import Prologue, squares
from .reduction import reduction
from .token_words import LEVELS, Order, bound_of, divide, dot, integers, largest, put_word, word
from .vectors import LANES, fours, only, power_of_two

ONES = 0x01010101
"""The word whose product with four bytes is their sum."""
SUMS = 16
"""Products with rows of A that a thread sums at once."""
RANKS = 8
"""Rows of A among them at most."""
HELD = 16
"""Vectors that a thread keeps of its tokens, at most; of longer ones it reads each again."""
WORD = 4
"""Bytes of a float32."""
SPARE = 16 << 10
"""Bytes of shared memory for all but the sums of products."""
MANY = 1024
"""From this many tokens on, a row of A is worth holding for more of them."""


class Tokens:
    """The quantised tokens and their products with A, in device memory between launches.

    Attributes
    ----------
    words : Buffer
        ``(T', K / 4)`` int32; T' is T rounded up to a multiple of `multiple`, and what lies beyond
        T is of no use. Rows end with zeros where the packing's last word goes beyond K.
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
        Whose gate and norm x passes first; `lora_input` is x then.
    order : callable, optional
        Where the words go; None for the order of the columns.
    packing : Packing
        Of the matrix, whose words decide how the integers are read.
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
        packing: Packing = TWO_BIT,
    ) -> None:
        self.order, self.packing = order, packing
        self.gpu, self.x, self.a, self.lora_input, self.fused = gpu, x, a, lora_input, fused
        self.tokens, self.columns = shape(x)
        if fused is not None:
            self.columns = fused.columns
        count = static(self.tokens)
        self.few = multiple == 1
        # One work-group for all adapters, where there are enough: it need not quantise for each.
        self.alone = count is not None and count >= MANY and not self.few
        self.vectors = self.columns // LANES
        usual = min(gpu.threads, max(power_of_two(self.vectors), 32))
        counts = [count for count in (64, 128, 256) if count <= usual]
        self.threads = choose_next("quantiser", counts, usual)
        self.steps = ceil_div(self.vectors, self.threads)
        self.height = min(2, multiple)
        if self.alone:
            # The more tokens the more seldom A is read, but few threads could hold long ones.
            self.height = choose_next("tokens", (2, 4), 4 if 4 * self.steps <= HELD // 2 else 2)
        self.ranks = min(RANKS, SUMS // self.height)
        if self.alone and gpu.shared and gpu.target.limits is not None:
            room = gpu.target.limits.shared_bytes - SPARE
            most = room // (WORD * gpu.threads * self.height)
            self.ranks = next((ranks for ranks in (RANKS, 4, 2) if ranks <= most), 1)
        self.padded = ceil_div(self.tokens, multiple) * multiple
        self.width = packing.words(self.columns) * packing.digits
        self.words = scratch([self.padded, self.width], "int32")
        self.step = scratch([self.padded])
        self.sum = scratch([self.padded], "int32")
        self.down: Buffer = None
        if a is not None:
            self.adapters, self.rank, _ = shape(a)
            self.down = scratch([self.padded, self.adapters, self.rank])

    def reader(self) -> Callable[[Expr, Expr], list[Expr]]:
        """Return ``words(token, place)``, a token's integers at a place of a matrix' row."""
        return integers(self.words, self.packing)

    @classmethod
    def of(
        cls,
        gpu: Gpu,
        linear: Linear,
        multiple: int,
        order: Order | None = None,
        packing: Packing | None = None,
    ) -> Tokens:
        """Return the tokens of a group of projections, after its gate and norm.

        They are laid out for another packing than the matrix' where one is named.
        """
        lora_input = linear.x if linear.lora_input is None else linear.lora_input
        fused = None if linear.is_plain else linear
        packing = packing or linear.packing
        return cls(gpu, linear.x, multiple, linear.a, lora_input, fused, order, packing)

    def emit(self, lora_scale: float) -> None:
        """Emit the launch that fills the buffers."""
        groups = ceil_div(self.tokens, self.height)
        grid = [groups, 1, 1]
        if self.a is not None and not self.alone:
            # Where there are few tokens, the rows of A are shared by more work-groups, too.
            grid = [groups, self.adapters, ceil_div(self.rank, self.ranks) if self.few else 1]
        with launch(grid, [self.threads]) as (group, adapter, chunk, thread):
            self.thread = thread
            self.first = bind(group * self.height)
            last = self.tokens - 1
            # A token past the end is the last one again, and goes to a place past the end.
            self.rows = [bind(tirx.min(self.first + i, last)) for i in range(self.height)]
            self._open()
            self._quantise(tirx.all(adapter == 0, chunk == 0))
            if self.a is not None:
                self._down(adapter, chunk, lora_scale)

    def _each(self, body: Callable[[Expr, Expr, Expr | None], None]) -> None:
        """Emit ``body(step, vector, whether there is one)`` for a thread's vectors; None: always.

        A step is a Python int where the vectors stay in registers.
        """

        def one(step: Expr) -> None:
            place = bind(step * self.threads + self.thread)
            if self.vectors % self.threads == 0:
                body(step, place, None)
            else:
                body(step, bind(tirx.min(place, self.vectors - 1)), bind(place < self.vectors))

        if self.steps * self.height <= HELD:
            for step in range(self.steps):
                one(step)
        else:
            with loop(self.steps) as step:
                one(step)

    def _open(self) -> None:
        """Emit the reading of the tokens; sets how their vectors are got from then on."""
        height, held_here = self.height, self.steps * self.height <= HELD
        kept: Buffer = registers([self.steps * height], VECTOR) if held_here else None
        x, other = fours(self.x), fours(self.lora_input)
        prologue = norm = None
        if self.fused is not None:
            prologue = Prologue(self.gpu, self.fused, self.threads, self.thread, height)
            norm = prologue if self.fused.norm is not None else None

        def read(i: int, place: Expr) -> Expr:
            row = self.rows[i]
            return bind(x[row, place]) if prologue is None else prologue.gated(row, place)

        if norm is not None:
            self._measure(norm, read, kept)
        elif held_here:

            def take(step: Expr, place: Expr, _: Expr | None) -> None:
                self._keep(read, kept, step, place)

            self._each(take)

        def value(i: int, step: Expr, place: Expr) -> Expr:
            if held_here:
                return kept[step * height + i]
            found = read(i, place)
            return found if norm is None else norm.normed(found, norm.factor(place), i)

        self.value = self.lora_value = value
        if self.lora_input is not self.x:
            self.lora_value = lambda i, step, place: bind(other[self.rows[i], place])

    def _keep(
        self, read: Callable[[int, Expr], Expr], kept: Buffer, step: Expr, place: Expr
    ) -> list[Expr]:
        """Emit the reading of each token's vector at a place, to registers if there are any."""
        values = [read(i, place) for i in range(self.height)]
        if kept is not None:
            for i, value in enumerate(values):
                T.buffer_store(kept, value, [step * self.height + i])
        return values

    def _measure(self, norm: Prologue, read: Callable[[int, Expr], Expr], kept: Buffer) -> None:
        """Emit the norm's factors, and the norm of what stays in registers."""
        totals = registers([self.height])
        for i in range(self.height):
            T.buffer_store(totals, T.float32(0.0), [i])

        def take(step: Expr, place: Expr, inside: Expr | None) -> None:
            for i, value in enumerate(self._keep(read, kept, step, place)):
                T.buffer_store(totals, totals[i] + squares(only(inside, value)), [i])

        def scale(step: Expr, place: Expr, _: Expr | None) -> None:
            factor = norm.factor(place)
            for i in range(self.height):
                at = step * self.height + i
                T.buffer_store(kept, norm.normed(kept[at], factor, i), [at])

        self._each(take)
        norm.sum_squares(*(totals[i] for i in range(self.height)))
        if kept is not None:
            self._each(scale)

    def _quantise(self, mine: Expr) -> None:
        """Emit the tokens' words, steps and sums; the work-groups where `mine` holds keep them."""
        height = self.height
        top, total = registers([height]), registers([height], "int32")
        for i in range(height):
            T.buffer_store(top, T.float32(0.0), [i])
            T.buffer_store(total, 0, [i])

        def look(step: Expr, place: Expr, _: Expr | None) -> None:
            for i in range(height):
                T.buffer_store(top, tirx.max(top[i], largest(self.value(i, step, place))), [i])

        self._each(look)
        maxima = reduction(self.gpu, self.threads, self.thread, height, combine=tirx.max)
        maxima.put([top[i] for i in range(height)])
        bounds = [bound_of(maxima.get(i)) for i in range(height)]
        factors = [divide(T.float32(LEVELS), bound) for bound in bounds]

        def put(step: Expr, place: Expr, inside: Expr | None) -> None:
            for i in range(height):
                packed = word(self.value(i, step, place), factors[i])
                if inside is not None:
                    packed = bind(tirx.Select(inside, packed, 0))
                T.buffer_store(total, dot4(packed, ONES, total[i]), [i])
                kept = mine if inside is None else tirx.all(inside, mine)
                when(kept, partial(put_word, self.words, packed, self.first + i, place, self.order))

        self._each(put)
        if self.width > self.vectors:
            kept = tirx.all(mine, self.thread < self.width - self.vectors)
            for i in range(height):
                place = [self.first + i, self.vectors + self.thread]
                when(kept, partial(T.buffer_store, self.words, 0, place))
        sums = reduction(self.gpu, self.threads, self.thread, height, "int32")
        sums.put([total[i] for i in range(height)])

        def finish() -> None:
            for i in range(height):
                T.buffer_store(self.step, divide(bounds[i], T.float32(LEVELS)), [self.first + i])
                T.buffer_store(self.sum, sums.get(i), [self.first + i])

        when(tirx.all(mine, self.thread == 0), finish)

    def _down(self, adapter: Expr, chunk: Expr, lora_scale: float) -> None:
        """Emit the products with the rows of A, of one adapter or of all, a few rows at a time."""
        count = self.height * self.ranks
        sums = reduction(self.gpu, self.threads, self.thread, count)
        total = registers([count])

        def rows(adapter: Expr, chunk: Expr) -> None:
            self._multiply(adapter, chunk, total)
            sums.put([total[i] for i in range(count)])
            j = bind(chunk * self.ranks + self.thread % self.ranks)

            def put() -> None:
                value = sums.get(self.thread) * T.float32(lora_scale)
                token = self.first + self.thread // self.ranks
                T.buffer_store(self.down, value, [token, adapter, j])

            when(tirx.all(self.thread < count, j < self.rank), put)

        chunks = ceil_div(self.rank, self.ranks)
        if self.few:
            rows(adapter, chunk)
        elif self.alone:
            with loop(self.adapters * chunks) as index:
                rows(bind(index // chunks), bind(index % chunks))
        else:
            with loop(chunks) as index:
                rows(adapter, index)

    def _multiply(self, adapter: Expr, chunk: Expr, total: Buffer) -> None:
        """Emit a thread's part of the products with a few rows of A."""
        a = fours(self.a)
        for i in range(self.height * self.ranks):
            T.buffer_store(total, T.float32(0.0), [i])
        ranks = [bind(tirx.min(chunk * self.ranks + j, self.rank - 1)) for j in range(self.ranks)]

        def add(step: Expr, place: Expr, inside: Expr | None) -> None:
            values = [only(inside, self.lora_value(i, step, place)) for i in range(self.height)]
            for j, rank in enumerate(ranks):
                factor = bind(a[adapter, rank, place])
                for i, value in enumerate(values):
                    at = i * self.ranks + j
                    T.buffer_store(total, dot(value, factor, total[at]), [at])

        self._each(add)
