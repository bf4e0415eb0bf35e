"""Products with the adapters' thin factors, as dot products along memory of both operands."""

from __future__ import annotations

from collections.abc import Callable

from ..decisions import choose
from ..tir import Expr, bind, branch, horizontal, loop, static
from .isa import Isa
from .microkernel import Tile, accumulate, row_tiles

MANY = 16
"""From this many tokens on a thin product is cut among threads by token, below it by row."""
MANY_ROWS = 1024
"""From this many rows on it is always cut by row."""
PARALLEL_WORK = 1 << 18
"""Multiply-adds below which starting the threads costs more than it saves."""

CHAINS = (1, 2, 4, 8)
"""Sums of one token's product with a row that do not wait for each other."""

Vector = Callable[[Expr, Expr], Expr]


def dot_products(
    isa: Isa,
    tokens: Expr,
    rows: Expr,
    depth: int,
    left: Vector,
    right: Vector,
    store: Callable[[Expr, Expr, Expr], None],
) -> None:
    """Emit ``store(t, j, sum_k left[t, k] right[j, k])`` for t below `tokens`, j below `rows`.

    Parameters
    ----------
    isa : Isa
        The instruction set.
    tokens, rows : int or expression
        Extents, static or symbolic.
    depth : int
        Extent of the sum, a multiple of 16.
    left, right : callable
        ``left(t, k)`` and ``right(j, k)`` are float32 vectors of `isa.lanes` from column k on.
    store : callable
        Emits what becomes of a sum; may be emitted twice for the same ``(t, j)``.
    """
    many = isinstance(rows, int) and rows >= MANY_ROWS

    def stream() -> None:
        _stream(isa, rows, depth, left, right, store)

    if many and static(tokens) == 1:
        stream()
        return
    height, width = choose("thin tile", isa.dot_tiles, isa.dot_tile)

    def token_tile(token: Expr, high: int) -> None:
        row_tiles(rows, width, lambda j, wide: tile(token, high, j, wide), overlap=True)

    def row_tile(row: Expr, wide: int) -> None:
        row_tiles(tokens, height, lambda t, high: tile(t, high, row, wide), overlap=True)

    def tile(token: Expr, high: int, row: Expr, wide: int) -> None:
        sums = Tile(high, wide, isa.lanes)
        sums.fill()
        accumulate(
            sums,
            depth // isa.lanes,
            lambda i, k: left(token + i, k * isa.lanes),
            lambda k, j: right(row + j, k * isa.lanes),
        )
        for i, j in sums:
            store(token + i, row + j, horizontal(sums[i, j], lambda a, b: a + b))

    def by_token(parallel: bool = True) -> None:
        row_tiles(tokens, height, token_tile, parallel, overlap=True)

    def by_row() -> None:
        row_tiles(rows, width, row_tile, parallel=True, overlap=True)

    def parallel() -> None:
        branch(tokens >= MANY, by_token, by_row)

    if many:
        # Many rows, as of a vocabulary, are shared by threads so that each is read once.
        branch(tokens == 1, stream, by_row)
        return
    if static(tokens) is None:
        parallel()
        return
    small = tokens * rows * depth < PARALLEL_WORK
    branch(small, lambda: by_token(parallel=False), parallel)


def _stream(
    isa: Isa,
    rows: int,
    depth: int,
    left: Vector,
    right: Vector,
    store: Callable[[Expr, Expr, Expr], None],
) -> None:
    """Emit the products of one token with many rows, which are read one after the other.

    Several rows at once would be as many streams, each too short for what fetches memory ahead.
    """
    vectors = depth // isa.lanes
    valid = [count for count in CHAINS if vectors % count == 0]
    chains = choose("chains", valid, valid[-1])
    with loop(rows, parallel=True) as row:
        sums = Tile(1, chains, isa.lanes)
        sums.fill()
        with loop(vectors // chains) as step:
            for c in range(chains):
                column = (step * chains + c) * isa.lanes
                sums[0, c] = sums[0, c] + left(0, column) * right(row, column)
        total = sums[0, 0]
        for c in range(1, chains):
            total = total + sums[0, c]
        store(0, row, horizontal(bind(total), lambda a, b: a + b))
