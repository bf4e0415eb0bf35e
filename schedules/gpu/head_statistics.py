"""The statistics of each token's logits: strip by strip of the vocabulary, then combined."""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, branch, shape, when
from .elements import constant, load, over_rows, store
from .head_chunks import Chunks
from .head_tokens import Tokens
from .kernel import Gpu, launch, loop, registers, scratch, strided
from .reduction import reduction
from .vectors import LANES, held, lane

BLOCK = 8
"""Rows of a strip whose maximum is taken at once."""
LOWEST = -1e30
"""The maximum of no logits."""
THREADS = 64
"""Threads that combine the statistics of a token."""


class Statistics:
    """Maximum and sum of exponentials of the tokens that carry loss.

    Parameters
    ----------
    gpu : Gpu
        The target's processor.
    tokens : Tokens
        The tokens.
    chunks : Chunks
        The cuts of the vocabulary.
    logits : Buffer
        ``(chunk, padded tokens)`` float32, the logits of the chunk at hand.

    Attributes
    ----------
    peak : Buffer
        ``(padded tokens,)`` float32, the largest logit.
    mean : Buffer
        ``(padded tokens,)`` float32, the factor on the gradient over the sum of the exponentials.
    """

    def __init__(self, gpu: Gpu, tokens: Tokens, chunks: Chunks, logits: Buffer) -> None:
        self.gpu, self.tokens, self.chunks, self.logits = gpu, tokens, chunks, logits
        size, strips = tokens.padded, chunks.count * chunks.strips
        self.top, self.total = (scratch([strips, size]) for _ in range(2))
        self.chosen, self.peak, self.mean = (scratch([size]) for _ in range(3))

    def measure(self, first: Expr, index: Expr) -> None:
        """Emit the statistics of a chunk's strips, and take the labels' own logits from it."""
        rows, strips = self.chunks.strip, self.chunks.strips

        def strip(s: Expr, token: Expr, lanes: int) -> None:
            def emit() -> None:
                begin, at = bind(s * rows), bind(index * strips + s)
                top, total = self._strip(first, begin, token)
                store(self.top, top, at, token)
                store(self.total, total, at, token)
                labels = bind(load(self.tokens.label, token, lanes=LANES))
                for i in range(LANES):
                    place = bind(lane(labels, i) - first - begin)
                    inside = tirx.all(place >= 0, place < rows)
                    when(inside, partial(self._choose, begin + place, token + i))

            when(token < self.tokens.count[0], emit)

        over_rows(self.gpu, strips, self.tokens.padded, strip)

    def _choose(self, row: Expr, token: Expr) -> None:
        T.buffer_store(self.chosen, self.logits[row, token], [token])

    def _strip(self, first: Expr, begin: Expr, token: Expr) -> tuple[Expr, Expr]:
        """Return maximum and sum of exponentials over a strip for four tokens."""
        state = registers([2], f"float32x{LANES}")
        T.buffer_store(state, constant(LOWEST, LANES), [0])
        T.buffer_store(state, constant(0.0, LANES), [1])
        with loop(self.chunks.strip // BLOCK) as block:
            values = [self._logit(first, begin + block * BLOCK + r, token) for r in range(BLOCK)]
            top = state[0]
            for value in values:
                top = T.max(top, value)
            top = held(top)
            total = state[1] * T.exp(state[0] - top)
            for value in values:
                total = total + T.exp(value - top)
            T.buffer_store(state, total, [1])
            T.buffer_store(state, top, [0])
        return state[0], state[1]

    def _logit(self, first: Expr, row: Expr, token: Expr) -> Expr:
        """Return four tokens' logits, the lowest where the row does not exist."""
        value = bind(load(self.logits, row, token, lanes=LANES))
        return held(self.chunks.only(row + first, value, constant(LOWEST, LANES)))

    def combine(self, factor: Buffer | None, loss: Buffer, dh: Buffer | None) -> None:
        """Emit the whole of each token's statistics, and its loss.

        Tokens that carry none get zeros, in `dh` as well.

        Parameters
        ----------
        factor : Buffer or None
            ``(1,)`` float32, the factor on the gradient.
        loss : Buffer
            ``(T,)`` float32.
        dh : Buffer or None
            ``(T, H)`` float32.
        """
        strips = self.chunks.count * self.chunks.strips
        with launch([self.tokens.extent], [THREADS]) as (t, thread):
            tops = reduction(self.gpu, THREADS, thread, combine=tirx.max)
            totals = reduction(self.gpu, THREADS, thread)
            mine = registers([1])

            def reach(s: Expr) -> None:
                store(mine, T.max(mine[0], self.top[s, t]), 0)

            store(mine, constant(LOWEST, 1), 0)
            strided(strips, THREADS, thread, reach)
            tops.put([mine[0]])
            peak = held(tops.get())

            def add(s: Expr) -> None:
                store(mine, mine[0] + self.total[s, t] * T.exp(self.top[s, t] - peak), 0)

            store(mine, constant(0.0, 1), 0)
            strided(strips, THREADS, thread, add)
            totals.put([mine[0]])
            total, source = totals.get(), bind(self.tokens.order[t])

            def with_loss() -> None:
                T.buffer_store(loss, T.log(total) + (peak - self.chosen[t]), [source])
                T.buffer_store(self.peak, peak, [t])
                share = (T.float32(1.0) if factor is None else factor[0]) / total
                T.buffer_store(self.mean, share, [t])

            # Barriers are behind: a branch may part the threads.
            active = t < self.tokens.count[0]
            clear = partial(_clear, thread, source, loss, dh)
            branch(active, lambda: when(thread == 0, with_loss), clear)


def _clear(thread: Expr, token: Expr, loss: Buffer, dh: Buffer | None) -> None:
    """Emit the zeros of a token without loss."""
    zero = constant(0.0, 1)
    when(thread == 0, lambda: T.buffer_store(loss, zero, [token]))
    if dh is not None:
        strided(shape(dh)[1], THREADS, thread, lambda k: T.buffer_store(dh, zero, [token, k]))
