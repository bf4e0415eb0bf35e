"""What is left of a strip of logits by Hopper's warpgroups, see `head_strip.py`.

A thread has four rows of the vocabulary for a quarter of the tokens: their maxima and sums go
through shared memory, where then each thread has a token to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape, when
from .attention_heads import LOG2_E
from .fragments import exp2
from .head_statistics import LOWEST
from .head_strip import STRIP, Left
from .kernel import barrier, loop, registers
from .operand import HALVES
from .reduction import Combine, add
from .share import Share
from .ternary_tile import WARP
from .vectors import LANES, four, held
from .warpgroup import THREADS, line_place
from .warpgroup_block import WarpgroupBlock

GROUPS = STRIP // LANES
"""Threads that share a token."""
TOP, UNDO, LABEL, REACH = range(4)
"""What is known of each token; last, the warps' largest scales."""
APART = 8
"""Elements between their rows in shared memory, so that these begin in different banks."""


class WarpgroupStrip:
    """What a work-group leaves of the logits of its tokens and a strip.

    Parameters
    ----------
    head : Left
        The buffers; the weights in the order of :func:`.warpgroup.line_place`.
    block : WarpgroupBlock
        Whose shared memory is free.
    thread : PrimExpr
        The thread.
    row, begin : PrimExpr
        The tile's first token and its first row of the vocabulary.
    index, strip : PrimExpr
        The strip's number, and that within its chunk.
    share : Share
        The thread's part.
    """

    def __init__(
        self,
        head: Left,
        block: WarpgroupBlock,
        thread: Expr,
        row: Expr,
        begin: Expr,
        index: Expr,
        strip: Expr,
        share: Share,
    ) -> None:
        self.head, self.thread, self.row, self.index, self.share = head, thread, row, index, share
        self.height, self.first = block.tile.rows, bind(begin + share.vector * LANES)
        self.word = bind(strip * (STRIP // 2) + share.vector * 2)
        self.floats, self.integers = block.words("float32"), block.words("int32")
        # In shared memory: the threads' parts of each token, then what is known of each.
        self.pitch, self.parts = self.height + APART, bind(block.base * LANES)
        self.own = bind(self.parts + GROUPS * self.pitch)
        self.tokens = [bind(t - row) for t in share.rows]
        self.active = bind(row + thread < head.order.count[0])
        if self.height < block.tile.threads:
            self.active = tirx.all(self.active, thread < self.height)

    def emit(self) -> None:
        """Emit it."""
        barrier()
        scale = self._scales()
        self._fetch()
        barrier()
        logits = registers([len(self.tokens) * LANES])
        self._logits(logits, scale)
        top = self._combined(T.max, LOWEST)
        self._by_token(lambda: T.buffer_store(self.floats, top, [self._place(TOP, self.thread)]))
        barrier()
        self._weigh(logits, scale)
        total = self._combined(add, 0.0)

        def keep() -> None:
            t = bind(self.row + self.thread)
            T.buffer_store(self.head.top, top, [t, self.index])
            T.buffer_store(self.head.total, total, [t, self.index])

        when(self.active, keep)

    def _place(self, kind: int, token: Expr) -> Expr:
        """Return where one of the kinds of what is known of a token lies."""
        return self.own + kind * self.height + token

    def _by_token(self, emit: Callable[[], None]) -> None:
        """Emit what the threads do that have a token."""
        if self.height < THREADS:
            when(self.thread < self.height, emit)
        else:
            emit()

    def _scales(self) -> list[Expr]:
        """Return the scales of a thread's rows, and emit the store of a warp's largest."""
        head = self.head
        assert head.scale is not None
        scale = [held(head.scale[head.chunks.row(self.first + c)]) for c in range(LANES)]
        if head.reach is not None:
            a, b, c, d = scale
            mine = held(T.max(T.max(a, b), T.max(c, d)))
            most = held(T.call_pure_extern("float32", "fabric_subgroup_max", mine))
            T.buffer_store(self.floats, most, [self._place(REACH, self.thread // WARP)])
        return scale

    def _fetch(self) -> None:
        """Emit the reading of the tokens' factors and labels, once for all threads."""

        def read() -> None:
            t = bind(self.row + self.thread)
            label = self.head.order.label[T.min(t, self.head.order.padded - 1)]
            label = T.if_then_else(self.active, label, tirx.const(-1, "int32"))
            T.buffer_store(self.floats, self.head.undo[t], [self._place(UNDO, self.thread)])
            T.buffer_store(self.integers, label, [self._place(LABEL, self.thread)])

        self._by_token(read)

    def _logits(self, logits: Buffer, scale: list[Expr]) -> None:
        """Emit the logits, and the store of a thread's largest of each token.

        The label's is hidden, as are those of rows that do not exist.
        """
        exists = [self.first + c < self.head.chunks.vocabulary for c in range(LANES)]
        tops = []
        for i, (token, sums) in enumerate(zip(self.tokens, self.share.sums(), strict=True)):
            undo = bind(self.floats[self._place(UNDO, token)])
            own = bind(self.integers[self._place(LABEL, token)] - self.first)
            values = [held(s * (undo * f)) for s, f in zip(sums, scale, strict=True)]
            for c, value in enumerate(values):
                hidden = own == c
                if not self.head.chunks.exact:
                    hidden = tirx.any(hidden, tirx.Not(exists[c]))
                value = T.if_then_else(hidden, T.float32(LOWEST), value)
                T.buffer_store(logits, value, [i * LANES + c])
                # One thread of all has a label's own.
                put = partial(T.buffer_store, self.head.chosen, values[c], [self.share.rows[i]])
                when(own == c, put)
            a, b, c, d = (logits[i * LANES + c] for c in range(LANES))
            tops.append(held(T.max(T.max(a, b), T.max(c, d))))
            self._put(i, tops)

    def _put(self, i: int, values: list[Expr]) -> None:
        """Emit the store of a thread's parts of two neighbouring tokens, when both are there."""
        if i % 2 == 0:
            return
        pairs = T.decl_buffer(
            [shape(self.floats)[0] // 2],
            "float32x2",
            data=self.floats.data,
            scope=self.floats.scope(),
        )
        both = T.call_pure_extern("float32x2", "(float2)", *values[i - 1 :])
        place = self.parts + self.share.vector * self.pitch + self.tokens[i - 1]
        T.buffer_store(pairs, both, [place // 2])

    def _combined(self, combine: Combine, first: float) -> Expr:
        """Emit the combination of the threads' parts, and return that of the thread's token."""
        result = registers([1])
        T.buffer_store(result, T.float32(first), [0])
        barrier()
        with loop(GROUPS) as group:
            part = self.floats[self.parts + group * self.pitch + self.thread]
            T.buffer_store(result, combine(result[0], part), [0])
        return result[0]

    def _weigh(self, logits: Buffer, scale: list[Expr]) -> None:
        """Emit the exponentials, the store of a thread's sums of them, and that of the weights."""
        weight, totals = self._weights(scale), []
        for i, token in enumerate(self.tokens):
            # Where there is nothing but what is hidden, the exponentials are zeros all the same.
            base = self.floats[self._place(TOP, token)]
            base = held(T.max(base, T.float32(LOWEST / 10)))
            above = [(logits[i * LANES + c] - base) * T.float32(LOG2_E) for c in range(LANES)]
            terms = [held(exp2(value)) for value in above]
            totals.append(held((terms[0] + terms[1]) + (terms[2] + terms[3])))
            self._put(i, totals)
            if weight is not None:
                found = [term * w for term, w in zip(terms, weight, strict=True)]
                self._store(self.share.rows[i], found)

    def _weights(self, scale: list[Expr]) -> list[Expr] | None:
        """Return the scales over the strip's largest, whose store is emitted; None without any."""
        reach = self.head.reach
        if reach is None:
            return None
        a, b, c, d = (self.floats[self._place(REACH, warp)] for warp in range(LANES))
        # A strip without scales has only zeros.
        most = held(T.max(T.max(T.max(a, b), T.max(c, d)), T.float32(2.0**-100)))
        first = tirx.all(self.row == 0, self.thread == 0)
        when(first, partial(T.buffer_store, reach, most, [self.index]))
        return [held(s / most) for s in scale]

    def _store(self, token: Expr, weights: list[Expr]) -> None:
        """Emit the store of a token's weights of a thread's rows."""
        memory = self.head.weights
        assert memory is not None
        rows, words = shape(memory)
        pairs = T.decl_buffer([rows * words // 2], "int32x2", data=memory.data)
        value = T.reinterpret("int32x2", T.Cast(HALVES, four(weights)))
        T.buffer_store(pairs, value, [line_place(token, self.word, words) // 2])
