"""How subgroups meet that had the same queries, each with its part of the keys."""

from __future__ import annotations

from functools import partial

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, when
from .attention_fragment_tile import Tile
from .attention_vectors import view
from .fragments import SUMS, HalfRows, exp2
from .kernel import barrier, registers
from .vectors import four, held, lane


def meet(tile: Tile, parts: int, own: Expr, rows: HalfRows, place: tuple[Expr, int]) -> None:
    """Emit the addition of what the parts have to what the first one has.

    A part that saw no key has weights of its largest score all the same, which count as nothing
    beside those of a score: the first part has seen the first key.

    Parameters
    ----------
    tile : Tile
        The queries.
    parts : int
        The subgroups that share them.
    own : PrimExpr
        Which of these the thread belongs to.
    rows : HalfRows
        Rows whose memory is free; what the parts have goes through it.
    place : tuple
        The thread's number within its part, and the threads of one.
    """
    index, threads = place
    size = rows.rows * rows.pitch
    memory, share = view(rows.memory, [size], SUMS), registers([2])
    pieces, at_once = tile.mixture.count + 1, size // threads

    def write(begin: int, end: int) -> None:
        top, total = tile.softmax.top, tile.softmax.sum
        for n in range(begin, end):
            statistics = four([top[0], top[1], total[0], total[1]])
            value = tile.mixture.values[n - 1] if n else statistics
            T.buffer_store(memory, value, [index + (n - begin) * threads])

    def read(begin: int, end: int) -> None:
        for n in range(begin, end):
            found = bind(memory[index + (n - begin) * threads])
            if n == 0:
                _weigh(tile, found, share)
            else:
                values = tile.mixture.get(n - 1)
                added = [v + lane(found, c) * share[c // 2] for c, v in enumerate(values)]
                tile.mixture.put(n - 1, added)

    for part in range(1, parts):
        for begin in range(0, pieces, at_once):
            end = min(begin + at_once, pieces)
            when(own == part, partial(write, begin, end))
            barrier()
            when(own == 0, partial(read, begin, end))
            barrier()


def _weigh(tile: Tile, other: Expr, share: Buffer) -> None:
    """Emit the joint softmax of a tile and the largest scores and sums of another part.

    What that has weighs as `share` says, afterwards.
    """
    softmax, factors = tile.softmax, []
    for i in range(2):
        top = held(T.max(softmax.top[i], lane(other, i)))
        mine = held(exp2(softmax.top[i] - top))
        T.buffer_store(share, exp2(lane(other, i) - top), [i])
        T.buffer_store(softmax.sum, softmax.sum[i] * mine + lane(other, 2 + i) * share[i], [i])
        T.buffer_store(softmax.top, top, [i])
        factors.append(mine)
    tile.mixture.scale(*factors)
