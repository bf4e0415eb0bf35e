"""How a product on matrix units is laid out: by the units of a subgroup, or by Hopper's warpgroups.

A rule writes its launch in terms of a plan, and what becomes of the sums in terms of a `Share`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...targets import MatrixUnit
from ..tir import Buffer, Expr, bind, shape, static
from .kernel import Gpu
from .matrix_block import Factor, MatrixBlock, Rows
from .matrix_tile import MatrixTile
from .near_rows import near_rows
from .share import Share
from .token_words import Order
from .vectors import LANES
from .warpgroup import THREADS as WARPGROUP
from .warpgroup_block import PIECES, WarpgroupBlock
from .warpgroup_tile import COLUMNS, WarpgroupTile
from .warpgroup_weights import Weights

Finish = Callable[[Share], None]


@dataclass(frozen=True)
class Corner:
    """Where a work-group's tile begins, inside a launch.

    Attributes
    ----------
    thread : PrimExpr
        The thread.
    row, column : PrimExpr
        The first token, and the first output of the weights.
    part : PrimExpr or int
        The part of the depth.
    """

    thread: Expr
    row: Expr
    column: Expr
    part: Expr = 0


class Plan(Protocol):
    """The layout of a product.

    Attributes
    ----------
    rows, columns : int
        Tokens and outputs of a work-group.
    threads : int
        Its threads.
    parts : int
        Into how many parts the depth is cut.
    order : callable or None
        Where the tokens' words are expected; None for their own order.
    """

    rows: int
    columns: int
    threads: int
    parts: int
    order: Order | None

    def near(self, corner: Corner, rows: Buffer) -> tuple[Buffer, Expr]:
        """Bring what belongs to the tile's tokens near, if that is worth it, before :meth:`emit`.

        `rows` is ``(T, S, r)`` float32. Returns where its rows are in the end, and the number of
        the token that is the first there.
        """

    def emit(
        self, corner: Corner, tokens: Buffer, vectors: int, packed: Buffer, finish: Finish
    ) -> None:
        """Emit the sums of a tile and ``finish(share)`` for each part of it.

        Parameters
        ----------
        corner : Corner
            The tile.
        tokens : Buffer
            ``(T', vectors)`` int32x4, T' a multiple of `rows`.
        vectors : int
            Of a token.
        packed : Buffer
            The weights.
        finish : callable
            Emits what becomes of the sums.
        """


class UnitPlan:
    """A product on the units of a subgroup; see `MatrixBlock`.

    Parameters
    ----------
    gpu, unit, tile
        As of `MatrixBlock`.
    factor : callable
        ``factor(tile, packed, column)`` returns the right factor.
    parts : int
        Into how many parts the depth is cut.
    finished : callable, optional
        Returns four sums as a rule wants them, of the four that the units give.
    left : callable, optional
        ``left(tile, tokens, row)`` returns the left factor; without it, the tokens as they are.
    """

    order: Order | None = None

    def __init__(
        self,
        gpu: Gpu,
        unit: MatrixUnit,
        tile: MatrixTile,
        factor: Callable[[MatrixTile, Buffer, Expr], Factor],
        parts: int = 1,
        finished: Callable[[list[Expr]], list[Expr]] = list,
        left: Callable[[MatrixTile, Buffer, Expr], Factor] = Rows,
    ) -> None:
        self.gpu, self.unit, self.tile, self.factor = gpu, unit, tile, factor
        self.parts, self.finished, self.left = parts, finished, left
        self.rows, self.columns = tile.rows, tile.columns
        self.threads = tile.threads(gpu.subgroup)

    def near(self, _corner: Corner, rows: Buffer) -> tuple[Buffer, Expr]:
        """Leave them where they are: a work-group's threads share lines of the cache."""
        return rows, 0

    def emit(
        self, corner: Corner, tokens: Buffer, vectors: int, packed: Buffer, finish: Finish
    ) -> None:
        """Emit the sums of a tile."""
        block = MatrixBlock(
            self.gpu,
            self.unit,
            self.tile,
            self.left(self.tile, tokens, corner.row),
            vectors,
            self.factor(self.tile, packed, corner.column),
            self.parts,
        )
        block.emit(
            corner.thread,
            corner.row,
            lambda share: finish(share.converted(self.finished)),
            corner.part,
        )


class WarpgroupPlan:
    """A product on Hopper's warpgroups; see `WarpgroupBlock`.

    Parameters
    ----------
    tile : WarpgroupTile
        The work-groups' outputs.
    weights : callable
        ``weights(packed, column, thread)`` returns the left factor.
    sums : str
        Their dtype.
    order : callable, optional
        Where the tokens' words are expected.
    """

    columns = COLUMNS

    def __init__(
        self,
        tile: WarpgroupTile,
        weights: Callable[[Buffer, Expr, Expr], Weights],
        sums: str,
        order: Order | None = None,
    ) -> None:
        self.tile, self.weights, self.sums, self.order = tile, weights, sums, order
        self.rows, self.parts, self.threads = tile.rows, tile.parts, tile.threads

    def near(self, corner: Corner, rows: Buffer) -> tuple[Buffer, Expr]:
        """Copy them to shared memory: a thread has outputs of a quarter of the tile's tokens."""
        rank = static(shape(rows)[-1])
        if rank is None or rank % LANES:
            return rows, 0
        return near_rows(rows, corner.row, self.rows, corner.thread, self.threads), corner.row

    def emit(
        self, corner: Corner, tokens: Buffer, vectors: int, packed: Buffer, finish: Finish
    ) -> None:
        """Emit the sums of a tile."""
        block = WarpgroupBlock(self.tile, tokens, self.sums, vectors // PIECES)
        weights = self.weights(packed, corner.column, bind(corner.thread % WARPGROUP))
        block.emit(corner.thread, corner.row, weights, finish, bind(corner.part))
