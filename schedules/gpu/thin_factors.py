"""The adapters' thin factors of an adjoint, ``u = scale x A^T`` and ``du = scale dy B^T``.

A work-group takes a few tokens of one matrix, whose rows are thousands of elements wide where the
results are a few numbers. Those of dy become scaled 16-bit floats in the same launch, see
`halves.py`, so that dy comes from memory once: the second look at a token finds it in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..ternary import Segment
from ..tir import Buffer, Expr, bind, splat, when
from .halves import Halves, scales
from .kernel import Gpu, ceil_div, launch, loop, registers
from .operand import HALVES
from .prologue import squares
from .reduction import Reduction
from .token_words import dot, largest
from .vectors import LANES, fours, held, only

WORD = 4
"""Bytes of a float32."""
RANKS = 8
"""Ranks that are summed at once."""
FEW = 512
"""Up to this many tokens there are too few to wait for several products of each in turn."""


@dataclass(frozen=True)
class Thin:
    """One product ``out[token, first + j] = sum_v left(token, v) right(j, v)``.

    Attributes
    ----------
    left, right : callable
        ``left(token, v)`` and ``right(j, v)`` return vectors of four.
    vectors : int
        Of a row.
    out : Buffer
        ``(1, T, S r)`` float32.
    first : int
        The first column.
    part : Segment or None
        The projection whose part of dy is the left factor; None where that is x.
    """

    left: Callable[[Expr, Expr], Expr]
    right: Callable[[Expr, Expr], Expr]
    vectors: int
    out: Buffer
    first: int
    part: Segment | None = None


@dataclass(frozen=True)
class Normed:
    """The norm that x passes first.

    Attributes
    ----------
    weight : Buffer
        ``(K / 4,)`` float32x4.
    columns : int
        K.
    epsilon : float
        Of the norm.
    inverse : Buffer
        ``(T,)`` float32, where each token's factor goes.
    """

    weight: Buffer
    columns: int
    epsilon: float
    inverse: Buffer


class ThinFactors:
    """The launch of some products of as many columns each, and of the halves of dy.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    tokens : int
        T.
    rank : int
        Columns of each product.
    scale : float
        A factor on all of them.
    products : list of Thin
        First those of dy, at least one.
    parts : list of Segment
        The projections, which share the columns of dy.
    dy, weights : Buffer
        ``(T, N)`` and ``(S,)`` float32; the halves are of dy times the weight of each projection.
    halves : Halves
        Where they go.
    norm : Normed, optional
        Of x.
    """

    def __init__(
        self,
        gpu: Gpu,
        tokens: int,
        rank: int,
        scale: float,
        products: Sequence[Thin],
        parts: Sequence[Segment],
        dy: Buffer,
        weights: Buffer,
        halves: Halves,
        norm: Normed | None = None,
    ) -> None:
        self.norm = norm
        self.gpu, self.tokens, self.rank, self.scale = gpu, tokens, rank, scale
        self.products, self.dy, self.weights, self.halves = products, dy, weights, halves
        few = tokens <= FEW
        self.height, self.threads = (2, gpu.threads) if few else _many(gpu)
        self.chunks = ceil_div(rank, RANKS)
        # What the work-groups of a slot do: products in turn, and halves of some projections.
        outer = [i for i, product in enumerate(products) if product.part is not None]
        plain = [part for part in parts if part.adapter is None]
        if few:
            adapted = [product.part for product in products if product.part is not None]
            self.kept = [[adapted[0], *plain], *([part] for part in adapted[1:])]
            self.ends = [i + 1 for i in range(len(products))]
            self.looked = [list(parts)] * len(self.kept)
        else:
            self.kept, self.looked = [list(parts)], [plain]
            self.ends = list(range(len(outer), len(products) + 1))

    def emit(self) -> None:
        """Emit the launch; outside of any."""
        threads, height = self.threads, self.height
        count = height * RANKS
        grid = [ceil_div(self.tokens, height), len(self.ends)]
        with launch(grid, [threads]) as (group, slot, thread):
            self.thread, self.first = thread, bind(group * height)
            last = self.tokens - 1
            # A token past the end is the last one again, and nobody stores it.
            self.rows = [bind(tirx.min(self.first + i, last)) for i in range(height)]
            self.sums = Reduction(threads, thread, count)
            self.total, self.top = registers([count]), registers([height])
            tops = Reduction(threads, thread, height, combine=tirx.max)
            if self.norm is not None:
                self.squares, self.square_sums = (
                    registers([height]),
                    Reduction(threads, thread, height),
                )
            for i in range(height):
                T.buffer_store(self.top, T.float32(0.0), [i])
            for i, parts in enumerate(self.looked):
                when(slot == i, partial(self._look, parts))
            begin, turns = self._turns(slot)
            with loop(turns) as turn:
                self._task(bind(begin + turn))
            tops.put([self.top[i] for i in range(height)])
            for i, parts in enumerate(self.kept):
                when(slot == i, partial(self._halve, parts, tops, i == 0))

    def _turns(self, slot: Expr) -> tuple[Expr, Expr]:
        """Return a slot's first task and the number of its tasks: a product's ranks, 8 at once."""
        begins = [0, *self.ends[:-1]]
        counts = [end - begin for begin, end in zip(begins, self.ends, strict=True)]
        return tuple(
            bind(_of(slot, [n * self.chunks for n in numbers])) for numbers in (begins, counts)
        )

    def _each(
        self, vectors: int, body: Callable[[Expr, Expr | None], None], backwards: bool = False
    ) -> None:
        """Emit ``body(vector, whether it exists)`` for a thread's vectors; None: always."""
        steps = ceil_div(vectors, self.threads)
        with loop(steps) as step:
            turn = steps - 1 - step if backwards else step
            place = bind(turn * self.threads + self.thread)
            if vectors % self.threads == 0:
                body(place, None)
            else:
                body(bind(tirx.min(place, vectors - 1)), bind(place < vectors))

    def _weight(self, part: Segment) -> Expr:
        return bind(self.weights[part.index])

    def _see(self, i: int, value: Expr, weight: Expr) -> None:
        """Emit that a token has a vector of values, times a weight."""
        size = largest(value) * T.fabs(weight)
        T.buffer_store(self.top, tirx.max(self.top[i], size), [i])

    def _look(self, parts: Sequence[Segment]) -> None:
        """Emit the largest magnitudes of the tokens' parts of some projections."""
        for part in parts:
            weight = self._weight(part)

            def see(v: Expr, _: Expr, part: Segment = part, weight: Expr = weight) -> None:
                for i, row in enumerate(self.rows):
                    self._see(i, bind(fours(self.dy)[row, part.begin // LANES + v]), weight)

            self._each((part.end - part.begin) // LANES, see)

    def _task(self, task: Expr) -> None:
        """Emit some ranks of a product."""
        product, chunk = bind(task // self.chunks), bind(task % self.chunks)
        count = self.height * RANKS
        for i in range(count):
            T.buffer_store(self.total, T.float32(0.0), [i])
        if self.norm is not None:
            for i in range(self.height):
                T.buffer_store(self.squares, T.float32(0.0), [i])
        for i, thin in enumerate(self.products):
            when(product == i, partial(self._multiply, thin, chunk))
        self.sums.put([self.total[i] for i in range(count)])
        if self.norm is not None:
            self.square_sums.put([self.squares[i] for i in range(self.height)])
        token, j = (
            bind(self.first + self.thread // RANKS),
            bind(chunk * RANKS + self.thread % RANKS),
        )
        value = bind(self.sums.get(tirx.min(self.thread, count - 1)) * T.float32(self.scale))
        inside = bind(tirx.all(self.thread < count, token < self.tokens, j < self.rank))
        for i, thin in enumerate(self.products):

            def put(thin: Thin = thin) -> None:
                kept = value
                if self.norm is not None and thin.part is None:
                    inverse = self._inverse(self.norm, self.thread // RANKS)
                    kept = value * inverse
                    if thin.first == 0:
                        keep = partial(T.buffer_store, self.norm.inverse, inverse, [token])
                        when(j == 0, keep)
                T.buffer_store(thin.out, kept, [0, token, thin.first + j])

            when(tirx.all(inside, product == i), put)

    def _inverse(self, norm: Normed, token: Expr) -> Expr:
        """Return the norm's factor of a token of the work-group."""
        mean = self.square_sums.get(token) / T.float32(norm.columns)
        return held(T.float32(1.0) / T.sqrt(mean + T.float32(norm.epsilon)))

    def _before(self, norm: Normed, values: list[Expr], v: Expr) -> list[Expr]:
        """Emit the addition of the tokens' squares; returns the values times the weight."""
        for i, value in enumerate(values):
            T.buffer_store(self.squares, self.squares[i] + squares(value), [i])
        weight = bind(norm.weight[v])
        return [bind(value * weight) for value in values]

    def _multiply(self, thin: Thin, chunk: Expr) -> None:
        """Emit a thread's part of the products of the tokens with some ranks."""
        # A rank past the end is the last one again.
        ranks = [bind(tirx.min(chunk * RANKS + j, self.rank - 1)) for j in range(RANKS)]
        sees = thin.part is not None and len(self.kept) == 1
        weight = self._weight(thin.part) if thin.part is not None and sees else None

        def add(v: Expr, inside: Expr | None) -> None:
            values = [only(inside, bind(thin.left(row, v))) for row in self.rows]
            if self.norm is not None and thin.part is None:
                values = self._before(self.norm, values, v)
            if weight is not None:
                for i, value in enumerate(values):
                    self._see(i, value, weight)
            for j, number in enumerate(ranks):
                factor = bind(thin.right(number, v))
                for i, value in enumerate(values):
                    at = i * RANKS + j
                    T.buffer_store(self.total, dot(value, factor, self.total[at]), [at])

        self._each(thin.vectors, add)

    def _halve(self, parts: Sequence[Segment], tops: Reduction, whole: bool) -> None:
        """Emit the tokens' halves of some projections, and with `whole` how to undo them."""
        factors = [scales(held(tops.get(i))) for i in range(self.height)]
        # What was read last is still in the caches.
        for part in reversed(parts):
            weight = self._weight(part)

            def put(v: Expr, _: Expr, part: Segment = part, weight: Expr = weight) -> None:
                place = bind(part.begin // LANES + v)
                for row, (up, _) in zip(self.rows, factors, strict=True):
                    value = bind(fours(self.dy)[row, place] * splat(weight, LANES))
                    self.halves.put(row, place, T.Cast(HALVES, value * splat(up, LANES)))

            self._each((part.end - part.begin) // LANES, put, backwards=True)
        if whole:

            def undo() -> None:
                for row, (_, down) in zip(self.rows, factors, strict=True):
                    T.buffer_store(self.halves.undo, down, [row])

            when(self.thread == 0, undo)


def _many(gpu: Gpu) -> tuple[int, int]:
    """Return the tokens and threads of a work-group where there are many tokens.

    The more tokens, the more seldom all the ranks are read; their sums must fit shared memory.
    """
    assert gpu.target.limits is not None
    threads = min(gpu.threads, 128)
    room = gpu.target.limits.shared_bytes // (WORD * threads)
    return next((h for h in (8, 4, 2) if h * (RANKS + 2) <= room), 1), threads


def _of(slot: Expr, numbers: list[int]) -> Expr:
    """Return a slot's number of these."""
    chosen: Expr = numbers[-1]
    for i in reversed(range(len(numbers) - 1)):
        chosen = tirx.Select(slot <= i, numbers[i], chosen)
    return chosen
