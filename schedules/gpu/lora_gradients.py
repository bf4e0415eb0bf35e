"""The adapters' gradients, ``dA = du^T x`` and ``dB = u^T dy``: sums over the tokens.

Each product reads a matrix as wide as the model once, and its result is a few rows: memory is the
limit. A work-group has a strip of columns and a slab of tokens. The slab's elements of the thin
factor come to shared memory first, so that only the wide matrix is waited for. The threads read 16
bytes of it beside their neighbours' and hold the sums of all rows of their columns, each for some
of the tokens; these meet in shared memory. Where there are many tokens there are several slabs,
whose sums a second launch adds, in their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..decisions import choose_next
from ..tir import Buffer, Expr, bind, shape, splat, when
from .elements import threads as elementwise_threads
from .kernel import (
    Gpu,
    barrier,
    ceil_div,
    elements,
    launch,
    loop,
    registers,
    scratch,
    shared,
    strided,
)
from .operand import VECTOR, zero_vector
from .vectors import LANES, four, fours, lane, only

FEW = 512
"""Up to this many tokens a work-group takes them all."""
MOST = 12
"""Rows of a thread's sums, at most."""
UNROLL = 4
"""Tokens that a thread reads at once."""
ROUND = 8
"""Rows that meet in shared memory at once, at most."""
GROUPS = 792
"""Work-groups that are all under way at once on a large processor: six on each of 132 cores."""
WORD = 4
"""Bytes of a float32."""
Store = Callable[[Expr, Expr, Expr], None]
"""``store(row, vector, value)`` emits the store of four columns of a row of a result."""


@dataclass(frozen=True)
class Skinny:
    """One product ``result[j, v] = sum_t thin[t, first + j] wide(t, v)``.

    Attributes
    ----------
    thin : Buffer
        ``(parts, T, S r)`` float32, to be added over the parts.
    first, rows : int
        Its columns of `thin`.
    wide : callable
        ``wide(t, v)`` returns vectors of four.
    vectors : int
        Of a row of `wide`.
    store : callable
        Takes the result.
    weights : Buffer, optional
        ``(T,)`` float32, a factor of each token.
    """

    thin: Buffer
    first: int
    rows: int
    wide: Callable[[Expr, Expr], Expr]
    vectors: int
    store: Store
    weights: Buffer = None

    @property
    def high(self) -> int:
        """Rows that a thread sums: as equal shares of them all as whole vectors allow."""
        share = ceil_div(self.rows, ceil_div(self.rows, MOST))
        return share if share == self.rows else ceil_div(share, LANES) * LANES

    @property
    def chunks(self) -> int:
        """Into how many shares the rows are cut."""
        return ceil_div(self.rows, self.high)

    @property
    def groups(self) -> int:
        """Groups of four that a share's elements of a token fill."""
        return ceil_div(self.high, LANES)

    def factors(self, token: Expr, first: Expr, group: Expr) -> Expr:
        """Return four of a token's elements of a share; what is past the end is of no use."""
        found = self._factors(token, first, group)
        if self.weights is None:
            return found
        return bind(found * splat(bind(self.weights[token]), LANES))

    def _factors(self, token: Expr, first: Expr, group: Expr) -> Expr:
        parts, _, width = shape(self.thin)
        if any(n % LANES for n in (width, self.first, self.high)):
            begin = bind(self.first + first + group * LANES)
            places = [tirx.min(begin + c, width - 1) for c in range(LANES)]
            return four([bind(_total(self.thin, parts, token, place)) for place in places])
        place = tirx.min((self.first + first) // LANES + group, width // LANES - 1)
        return bind(_total(fours(self.thin), parts, token, place))


def _total(thin: Buffer, parts: int, token: Expr, place: Expr) -> Expr:
    total = thin[0, token, place]
    for part in range(1, parts):
        total = total + thin[part, token, place]
    return total


class _Sums:
    """The launch of the sums over a slab of tokens."""

    def __init__(self, gpu: Gpu, tokens: int, products: list[Skinny]) -> None:
        self.gpu, self.tokens, self.products = gpu, tokens, products
        few = tokens <= FEW
        self.across = 16 if few else 32
        self.threads = gpu.threads if few else min(gpu.threads, 128)
        self.slots = self.threads // self.across
        self.high = max(product.high for product in products)
        counts = [ceil_div(p.vectors, self.across) * p.chunks for p in products]
        self.ends = list(itertools.accumulate(counts))
        assert gpu.target.limits is not None
        self.room = gpu.target.limits.shared_bytes // (LANES * WORD)
        each, most = self.slots * UNROLL, max(product.groups for product in products)
        steps = ceil_div(tokens, each)
        least = ceil_div(steps, max(1, self.room // (each * most)))
        wanted = max(least, 1 if few else min(GROUPS // self.ends[-1], steps))
        cuts = [n for n in (1, 2, 4, 8, 16) if least <= n <= steps]
        self.steps = ceil_div(steps, choose_next("slabs", cuts or [wanted], wanted))
        self.parts, self.span = ceil_div(steps, self.steps), self.steps * each
        self.height = min(ROUND, self.slots, self.high, self.room // self.threads)
        # The factors lie there first, and what the threads of a column have in the end.
        self.size = max(self.span * most, self.height * self.threads)

    def emit(self, stores: list[Callable[[Expr], Store]]) -> None:
        """Emit the launch; ``stores[i](part)`` takes the i-th product's sums over a slab."""
        with launch([self.ends[-1], self.parts], [self.threads]) as (strip, part, thread):
            self.thread, self.column = thread, bind(thread % self.across)
            self.slot = bind(thread // self.across)
            self.begin = bind(part * self.span)
            self.memory = shared([self.size], VECTOR)
            self.sums = registers([self.high], VECTOR)
            for j in range(self.high):
                T.buffer_store(self.sums, zero_vector(), [j])
            begins = [0, *self.ends]
            inside = [bind(tirx.all(strip >= b, strip < e)) for b, e in itertools.pairwise(begins)]
            for task in (self._stage, self._add):
                for i, product in enumerate(self.products):
                    when(inside[i], partial(task, product, strip - begins[i]))
                barrier()

            def store(row: Expr, value: Expr) -> None:
                for i, product in enumerate(self.products):
                    put = partial(self._put, product, strip - begins[i], row, value)
                    when(inside[i], partial(put, stores[i](part)))

            self._meet(store)

    def _place(self, product: Skinny, strip: Expr) -> tuple[Expr, Expr]:
        """Return a thread's first row and its vector, which may be past the end."""
        row = bind(strip % product.chunks * product.high)
        return row, bind(strip // product.chunks * self.across + self.column)

    def _stage(self, product: Skinny, strip: Expr) -> None:
        """Emit the copy of the slab's thin factor to shared memory."""
        first, _ = self._place(product, strip)

        def copy(index: Expr) -> None:
            token = bind(tirx.min(self.begin + index // product.groups, self.tokens - 1))
            found = product.factors(token, first, bind(index % product.groups))
            T.buffer_store(self.memory, found, [index])

        strided(self.span * product.groups, self.threads, self.thread, copy)

    def _add(self, product: Skinny, strip: Expr) -> None:
        """Emit a thread's sums over its tokens."""
        _, vector = self._place(product, strip)
        if product.vectors % self.across:
            vector = bind(tirx.min(vector, product.vectors - 1))
        ahead = registers([UNROLL], VECTOR)

        def place_of(step: Expr, u: int) -> Expr:
            return bind((step * UNROLL + u) * self.slots + self.slot)

        def read(step: Expr) -> None:
            for u in range(UNROLL):
                token, inside = bind(self.begin + place_of(step, u)), None
                if self.tokens % self.span:
                    token, inside = bind(tirx.min(token, self.tokens - 1)), token < self.tokens
                T.buffer_store(ahead, only(inside, bind(product.wide(token, vector))), [u])

        read(0)
        with loop(self.steps) as step:
            values = [bind(ahead[u]) for u in range(UNROLL)]
            # The last turn reads its own step again: cheaper than a branch.
            read(bind(tirx.min(step + 1, self.steps - 1)))
            for u, value in enumerate(values):
                place = bind(place_of(step, u) * product.groups)
                found = [bind(self.memory[place + group]) for group in range(product.groups)]
                for j in range(product.high):
                    factor = splat(lane(found[j // LANES], j % LANES), LANES)
                    T.buffer_store(self.sums, self.sums[j] + factor * value, [j])

    def _meet(self, store: Callable[[Expr, Expr], None]) -> None:
        """Emit the sums over the threads of a column, and ``store(row of the share, sum)``."""
        for begin in range(0, self.high, self.height):
            if begin:
                barrier()
            rows = range(begin, min(begin + self.height, self.high))
            for i, j in enumerate(rows):
                T.buffer_store(self.memory, self.sums[j], [i * self.threads + self.thread])
            barrier()

            def total(begin: int = begin) -> None:
                place = bind(self.slot * self.threads + self.column)
                value = self.memory[place]
                for s in range(1, self.slots):
                    value = value + self.memory[place + s * self.across]
                store(bind(begin + self.slot), bind(value))

            when(self.slot < len(rows), total)

    def _put(self, product: Skinny, strip: Expr, row: Expr, value: Expr, store: Store) -> None:
        """Emit the store of a sum that exists."""
        first, vector = self._place(product, strip)
        exists = [row < product.high]
        if product.rows % product.high:
            exists.append(first + row < product.rows)
        if product.vectors % self.across:
            exists.append(vector < product.vectors)
        when(tirx.all(*exists), lambda: store(bind(first + row), vector, value))


def _stored(product: Skinny, _part: Expr) -> Store:
    """Return what takes the sums over all tokens."""
    return product.store


def emit_gradients(gpu: Gpu, tokens: int, products: list[Skinny]) -> None:
    """Emit the launches of some products over the same tokens; call it outside of any."""
    sums = _Sums(gpu, tokens, products)
    if sums.parts == 1:
        sums.emit([partial(_stored, product) for product in products])
        return
    ends = list(itertools.accumulate(p.rows * p.vectors for p in products))
    begins = [0, *ends[:-1]]
    slabs = scratch([sums.parts, ends[-1] * LANES])

    def kept(product: Skinny, begin: int, part: Expr) -> Store:
        def store(row: Expr, vector: Expr, value: Expr) -> None:
            T.buffer_store(fours(slabs), value, [part, begin + row * product.vectors + vector])

        return store

    sums.emit([partial(kept, p, begin) for p, begin in zip(products, begins, strict=True)])

    def add(index: Expr) -> None:
        total = registers([1], VECTOR)
        T.buffer_store(total, zero_vector(), [0])
        with loop(sums.parts) as part:
            T.buffer_store(total, total[0] + fours(slabs)[part, index], [0])
        for product, begin, end in zip(products, begins, ends, strict=True):
            at = index - begin

            def put(product: Skinny = product, at: Expr = at) -> None:
                product.store(bind(at // product.vectors), bind(at % product.vectors), total[0])

            when(tirx.all(index >= begin, index < end), put)

    elements(ends[-1], elementwise_threads(gpu), add)
