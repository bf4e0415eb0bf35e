"""What is left of a strip of logits: their maximum, the sum of their exponentials, and weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, shape, when
from .half_block import RowShare
from .head_chunks import Chunks
from .head_statistics import LOWEST
from .head_tokens import Order
from .kernel import scratch
from .operand import HALVES
from .ternary_tile import WARP
from .vectors import LANES, four, held

STRIP = LANES * WARP
"""Rows of the vocabulary of a strip: four for each thread of a subgroup."""


@dataclass
class Left:
    """The buffers that strips read and fill.

    Attributes
    ----------
    order : Order
        The tokens.
    chunks : Chunks
        The cuts of the vocabulary.
    undo : Buffer
        ``(T',)`` float32, the factors on the tokens' logits.
    scale : Buffer or None
        ``(V,)`` float32, those of the table's rows.
    top, total : Buffer
        ``(T', strips)`` float32, a strip's largest logit and its sum of exponentials.
    chosen : Buffer
        ``(T',)`` float32, the label's own logit.
    reach : Buffer or None
        ``(strips,)`` float32, a strip's largest scale; None without the gradient.
    weights : Buffer or None
        ``(T', chunk / 2)`` int32, a chunk's weights, two 16-bit floats each.
    """

    order: Order
    chunks: Chunks
    undo: Buffer
    scale: Buffer | None
    top: Buffer
    total: Buffer
    chosen: Buffer
    reach: Buffer | None = None
    weights: Buffer | None = None

    @staticmethod
    def allocate(
        order: Order, chunks: Chunks, undo: Buffer, scale: Buffer | None, gradient: bool
    ) -> Left:
        """Return scratch memory for so many tokens and strips; outside of launches."""
        (rows,), strips = shape(undo), chunks.count * chunks.strips
        top, total = (scratch([rows, strips]) for _ in range(2))
        left = Left(order, chunks, undo, scale, top, total, scratch([rows]))
        if gradient:
            left.reach = scratch([strips])
            left.weights = scratch([rows, chunks.size // 2], "int32")
        return left


class Strip:
    """What a work-group leaves of the logits of its tokens and a strip.

    Parameters
    ----------
    head : Left
        The buffers.
    row, begin : PrimExpr
        The tile's first token and its first row of the vocabulary.
    index, strip : PrimExpr
        The strip's number, and that within its chunk.
    share : RowShare
        The thread's part.
    """

    def __init__(
        self, head: Left, row: Expr, begin: Expr, index: Expr, strip: Expr, share: RowShare
    ) -> None:
        self.head, self.row, self.index, self.share = head, row, index, share
        first = bind(begin + share.lane * LANES)
        self.places = [bind(first + c) for c in range(LANES)]
        self.exists = [place < head.chunks.vocabulary for place in self.places]
        self.vector = bind(strip * (STRIP // LANES) + share.lane)
        self.scale: list[Expr] | None = None
        self.weight: list[Expr] | None = None
        if head.scale is not None:
            self.scale = [held(head.scale[head.chunks.row(place)]) for place in self.places]

    def emit(self) -> None:
        """Emit it, row by row."""
        head = self.head
        if head.weights is not None:
            self.weight = self._weights()
        for i, below in enumerate(self.share.rows):
            t = bind(self.row + below)
            undo = bind(head.undo[t])
            label = bind(head.order.label[T.min(t, head.order.padded - 1)])
            active = bind(t < head.order.count[0])
            logits = []
            for c, value in enumerate(self.share.sums(i)):
                value = held(value * (undo if self.scale is None else undo * self.scale[c]))
                own = label == self.places[c]
                when(
                    tirx.all(own, active),
                    partial(T.buffer_store, head.chosen, value, [t]),
                )
                hidden = own if head.chunks.exact else tirx.any(own, tirx.Not(self.exists[c]))
                logits.append(held(T.if_then_else(hidden, T.float32(LOWEST), value)))
            self._row(t, active, logits)

    def _weights(self) -> list[Expr] | None:
        """Emit the strip's largest scale, and return the scales over it."""
        reach = T.float32(1.0)
        if self.scale is not None:
            a, b, c, d = self.scale
            reach = T.call_pure_extern(
                "float32", "fabric_subgroup_max", held(T.max(T.max(a, b), T.max(c, d)))
            )
            # A strip without scales has only zeros.
            reach = T.max(reach, T.float32(2.0**-100))
        reach = held(reach)
        first = tirx.all(self.row == 0, self.share.lane == 0)
        when(first, partial(T.buffer_store, self.head.reach, reach, [self.index]))
        return None if self.scale is None else [held(scale / reach) for scale in self.scale]

    def _row(self, t: Expr, active: Expr, logits: list[Expr]) -> None:
        """Emit what is left of a token's logits of the strip."""
        head = self.head
        a, b, c, d = logits
        mine = held(T.max(T.max(a, b), T.max(c, d)))
        top = held(T.call_pure_extern("float32", "fabric_subgroup_max", mine))
        # Where there is nothing but what is hidden, the exponentials are zeros all the same.
        base = held(T.max(top, T.float32(LOWEST / 10)))
        terms = [held(T.exp(value - base)) for value in logits]
        mine = held((terms[0] + terms[1]) + (terms[2] + terms[3]))
        total = held(T.call_pure_extern("float32", "fabric_subgroup_add", mine))

        def keep() -> None:
            T.buffer_store(head.top, top, [t, self.index])
            T.buffer_store(head.total, total, [t, self.index])

        when(tirx.all(active, self.share.lane == 0), keep)
        if head.weights is None:
            return
        if self.weight is not None:
            terms = [term * weight for term, weight in zip(terms, self.weight, strict=True)]
        halves = T.reinterpret("int32x2", T.Cast(HALVES, four(terms)))
        rows, words = shape(head.weights)
        pairs = T.decl_buffer([rows, words // 2], "int32x2", data=head.weights.data)
        T.buffer_store(pairs, halves, [t, self.vector])
