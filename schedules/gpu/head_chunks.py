"""How the vocabulary of a head is cut, so that its logits fit a bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from ..tir import Expr
from .kernel import ceil_div, loop
from .operand import zero_vector

LOGITS_BYTES = 64 << 20
"""Largest memory for logits."""
MULTIPLE = 64
"""Rows of the vocabulary come in multiples of a product's tile."""
STRIP = 32
"""Least rows of the vocabulary that a thread reads for its tokens' statistics."""
ENOUGH = 16
"""Tokens for a row of a strip: with more of them there are threads enough for longer strips."""


@dataclass(frozen=True)
class Chunks:
    """Chunks of rows, all of one size: the last may go past the vocabulary's end.

    Attributes
    ----------
    vocabulary : int
        Rows that exist.
    count : int
        Chunks.
    size : int
        Rows of one, a multiple of `strip` and of :data:`MULTIPLE`.
    strip : int
        Rows that share partial statistics.
    """

    vocabulary: int
    count: int
    size: int
    strip: int

    @staticmethod
    def plan(vocabulary: int, tokens: int) -> Chunks:
        """Return as few chunks as the memory for the logits of so many tokens allows."""
        most = max(LOGITS_BYTES // (4 * tokens) // MULTIPLE * MULTIPLE, MULTIPLE)
        strip = STRIP
        while strip * 2 <= min(tokens // ENOUGH, most):
            strip *= 2
        multiple = max(MULTIPLE, strip)
        count = ceil_div(vocabulary, most // multiple * multiple)
        size = ceil_div(ceil_div(vocabulary, count), multiple) * multiple
        return Chunks(vocabulary, count, size, strip)

    @property
    def strips(self) -> int:
        """Strips of a chunk."""
        return self.size // self.strip

    @property
    def exact(self) -> bool:
        """Whether every row of every chunk exists."""
        return self.count * self.size == self.vocabulary

    def each(self, body: Callable[[Expr, Expr], None]) -> None:
        """Emit ``body(first row, index)`` for every chunk; outside of launches."""
        if self.count == 1:
            body(0, 0)
            return
        with loop(self.count) as index:
            body(index * self.size, index)

    def row(self, row: Expr) -> Expr:
        """Return a row, or the last that exists."""
        return row if self.exact else T.min(row, self.vocabulary - 1)

    def only(self, row: Expr, value: Expr, otherwise: Expr | None = None) -> Expr:
        """Return four values, or others, zeros by default, where their row does not exist."""
        if self.exact:
            return value
        otherwise = zero_vector() if otherwise is None else otherwise
        return T.if_then_else(row < self.vocabulary, value, otherwise)
