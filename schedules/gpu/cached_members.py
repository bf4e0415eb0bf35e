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
    """A block's tokens as each subgroup finds them, whose threads read one after the other.

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

    Attributes
    ----------
    same : PrimExpr
        As :func:`of_one_sequence`.
    earliest, latest : PrimExpr
        The least and the largest of their positions.
    """

    def __init__(self, cache: Cache, first: Expr, queries: int, lane: Expr) -> None:
        own, last = bind(cache.sequence[first]), cache.tokens - 1
        tokens = [
            bind(T.min(first + T.min(lane + step * WARP, queries - 1), last))
            for step in range(ceil_div(queries, WARP))
        ]
        others = [T.cast(cache.sequence[token] != own, "int32") for token in tokens]
        positions = [bind(cache.position[token]) for token in tokens]
        found = _subgroup_max(_largest(others))
        enough = first + FEW <= cache.tokens
        self.same = held(T.cast(tirx.all(found == 0, enough), "int32"))
        self.latest = _subgroup_max(_largest(positions))
        self.earliest = held(-_subgroup_max(_largest([-each for each in positions])))


def _largest(values: list[Expr]) -> Expr:
    found = values[0]
    for value in values[1:]:
        found = T.max(found, value)
    return found


def _subgroup_max(value: Expr) -> Expr:
    return held(T.call_pure_extern("int32", "fabric_subgroup_max", held(value)))
