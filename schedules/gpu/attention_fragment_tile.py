"""Sixteen queries of a subgroup on matrix units, whose factors are the sums of two 16-bit floats.

A product of two such takes three of theirs: that of both rests is below what float32 has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind
from .attention_fragment_rows import Softmax, SplitRows
from .attention_heads import MASKED, Heads
from .attention_vectors import view
from .fragments import DEPTH, Lane, RowSums
from .kernel import registers
from .vectors import held

AT_ONCE = 2
"""Pairs of right factors in registers."""
VALUES = 16.0
"""Factor on values on their way to 16 bits, so that the rest of small ones has bits as well."""


class Tile:
    """Sixteen queries: their factors, their softmax, and the sums over the values.

    Parameters
    ----------
    heads : Heads
        The shape.
    place : Lane
        The thread's place.
    """

    def __init__(self, heads: Heads, place: Lane) -> None:
        self.heads, self.lane = heads, place
        self.query = [registers([heads.head_dim // DEPTH], "int32x4") for _ in range(2)]

    def begin(self) -> None:
        """Emit the start of the sums."""
        self.softmax, self.mixture = Softmax(), RowSums(self.heads.head_dim)
        self.mixture.clear()

    def hide(self, scores: RowSums, block: Expr, sees: Callable[[int, Expr], Expr]) -> None:
        """Emit the scores that hide the keys from `block` on for which ``sees(i, key)`` is false.

        They are those of the thread's i-th row.
        """
        for j in range(scores.count):
            found = []
            for c, value in enumerate(scores.get(j)):
                key = bind(block + (j * 8 + c % 2) + self.lane.column)
                found.append(held(T.if_then_else(sees(c // 2, key), value, T.float32(MASKED))))
            scores.put(j, found)


def add_products(
    sums: Sequence[RowSums],
    pairs: Sequence[int],
    lefts: Sequence[Sequence[Expr]],
    whole: Sequence[Expr],
    rest: Sequence[Expr],
) -> None:
    """Emit the products of split factors, the small ones first; exact factors have no rest.

    One waits for the other's sums, so that others come between.
    """
    for left, rights in ((1, whole), (0, rest), (0, whole)):
        for own, factors in zip(sums, lefts, strict=True):
            for pair, right in zip(pairs, rights, strict=False):
                own.add(pair, factors[left], right)


def mix(
    mixtures: Sequence[RowSums], weights: Sequence[RowSums], values: SplitRows, first: Expr = 0
) -> None:
    """Emit the addition of values, a row each from `first` on, that weights weigh."""
    columns = mixtures[0].count // 2
    for k in range(weights[0].count // 2):
        lefts = []
        for own in weights:
            high = own.left(k)
            lefts.append([high, own.left_rest(k, high)])
        for begin in range(0, columns, AT_ONCE):
            pairs = range(begin, min(begin + AT_ONCE, columns))
            whole, rest = values.turned_parts(first + 16 * k, [2 * pair for pair in pairs])
            add_products(mixtures, pairs, lefts, whole, rest)


def pairs_of(buffer: Buffer) -> Buffer:
    """Return a matrix of float32, or of vectors of four, in pairs of columns."""
    rows, columns = buffer.shape
    lanes = 4 if "x" in str(buffer.dtype) else 1
    return view(buffer, [rows, columns * lanes // 2], "float32x2")


def pair_of(low: Expr, high: Expr) -> Expr:
    """Return two float32 as a vector."""
    return T.call_pure_extern("float32x2", "(float2)", low, high)


def put_row(out: Buffer, row: Expr, column: Expr, sums: RowSums, i: int, factor: Expr) -> None:
    """Emit the store of the thread's i-th row, times a factor, from a column on.

    `out` is in pairs, and the column the thread's first.
    """
    first = bind(column // 2)
    for j in range(sums.count):
        a, b = sums.get(j)[2 * i : 2 * i + 2]
        T.buffer_store(out, pair_of(a * factor, b * factor), [row, first + 4 * j])
