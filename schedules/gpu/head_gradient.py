"""What becomes of the sums of the gradient's product, four columns of a token at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, branch, splat
from .vectors import LANES, fours


class Gradient(Protocol):
    """It, for tokens that carry loss."""

    def sides(self, emit: Callable[[Gradient], None]) -> None:
        """Emit ``emit(gradient)``, on both sides of a branch where that depends on the chunk."""

    def total(self, token: Expr, vector: Expr, sums: Expr) -> Expr:
        """Return what to store."""

    def put(self, part: Expr, token: Expr, vector: Expr, total: Expr) -> None:
        """Emit the store of what a part of the depth gives."""


@dataclass(frozen=True)
class ChunkGradient:
    """The addition of a chunk's part of the gradient to those before.

    Attributes
    ----------
    dh : Buffer
        ``(T, N)`` float32.
    order : Buffer
        ``(T',)`` int32, where a token stands in `dh`.
    grow, shrink : Buffer
        ``(T',)`` float32, the factors on the chunk's part and on what was before.
    index : PrimExpr or None
        The chunk; None for the first, before which nothing was.
    """

    dh: Buffer
    order: Buffer
    grow: Buffer
    shrink: Buffer
    index: Expr | None

    def sides(self, emit: Callable[[Gradient], None]) -> None:
        """Emit the first chunk's side, and the others'."""
        if self.index is None:
            emit(self)
            return
        first = replace(self, index=None)
        branch(self.index == 0, lambda: emit(first), lambda: emit(self))

    def total(self, token: Expr, vector: Expr, sums: Expr) -> Expr:
        """Return the sum so far."""
        total = sums * splat(bind(self.grow[token]), LANES)
        if self.index is None:
            return total
        before = fours(self.dh)[bind(self.order[token]), vector]
        return total + before * splat(bind(self.shrink[token]), LANES)

    def put(self, part: Expr, token: Expr, vector: Expr, total: Expr) -> None:
        """Emit its store."""
        T.buffer_store(fours(self.dh), total, [bind(self.order[token]), vector])


class PartGradient:
    """The sums of each part of the depth, kept apart.

    Parameters
    ----------
    parts : Buffer
        ``(parts, T, N)`` float32.
    """

    def __init__(self, parts: Buffer) -> None:
        self.parts = fours(parts)

    def sides(self, emit: Callable[[Gradient], None]) -> None:
        """Emit the only side."""
        emit(self)

    def total(self, token: Expr, vector: Expr, sums: Expr) -> Expr:
        """Return the sums as they are."""
        return sums

    def put(self, part: Expr, token: Expr, vector: Expr, total: Expr) -> None:
        """Emit their store."""
        T.buffer_store(self.parts, total, [part, token, vector])

    def all(self, count: int, token: Expr, vector: Expr) -> Expr:
        """Return the sum of so many parts."""
        total = self.parts[0, token, vector]
        for part in range(1, count):
            total = total + self.parts[part, token, vector]
        return bind(total)
