"""Which tokens a block of them has: whether they are of one sequence, and how far they see."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind
from .cached_token import Cache
from .kernel import ceil_div, loop, registers
from .ternary_tile import WARP
from .vectors import held

FEW = 4
"""Fewer tokens than this of a block are computed one by one."""


def of_one_sequence(cache: Cache, first: Expr, queries: int) -> Expr:
    """Return 1 where a block's tokens are of one sequence and worth taking together, else 0."""
    same, own = registers([1], "int32"), bind(cache.sequence[first])
    T.buffer_store(same, T.cast(first + FEW <= cache.tokens, "int32"), [0])
    with loop(queries - 1) as row:
        token = bind(T.min(first + row + 1, cache.tokens - 1))
        # A product, since a chain of conditions would be as many branches.
        T.buffer_store(same, same[0] * T.cast(cache.sequence[token] == own, "int32"), [0])
    return held(same[0])


class Members:
    """A block's tokens as each subgroup finds them, whose threads read some of them each.

    What it emits must be in control flow that is uniform.

    Parameters
    ----------
    cache : Cache
        The cache.
    first : PrimExpr
        The first token; those past the last one count as that.
    queries : int
        Tokens of a block.
    lane : PrimExpr
        The thread's number in its subgroup.
    """

    def __init__(self, cache: Cache, first: Expr, queries: int, lane: Expr) -> None:
        self.cache, self.first = cache, first
        self.tokens = [
            bind(T.min(first + T.min(lane + step * WARP, queries - 1), cache.tokens - 1))
            for step in range(ceil_div(queries, WARP))
        ]

    def same(self) -> Expr:
        """Return what :func:`of_one_sequence` does."""
        sequence, own = self.cache.sequence, bind(self.cache.sequence[self.first])
        others = _largest([T.cast(sequence[token] != own, "int32") for token in self.tokens])
        enough = self.first + FEW <= self.cache.tokens
        return held(T.cast(tirx.all(others == 0, enough), "int32"))

    def latest(self) -> Expr:
        """Return the largest of their positions."""
        return _largest([self.cache.position[token] for token in self.tokens])

    def earliest(self) -> Expr:
        """Return the least of their positions."""
        return held(-_largest([-self.cache.position[token] for token in self.tokens]))


def _largest(values: list[Expr]) -> Expr:
    """Return the largest of the values of all threads of a subgroup."""
    found = values[0]
    for value in values[1:]:
        found = T.max(found, value)
    return held(T.call_pure_extern("int32", "fabric_subgroup_max", held(found)))
