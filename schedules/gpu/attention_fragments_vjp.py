"""The adjoint of attention on matrix units whose fragments are known.

The launches and formulas of `attention_vjp.py`, with scores, weights and sums in the registers of
the subgroups, and every factor one 16-bit float: queries, keys and values as they are, the outer
adjoint scaled row by row (`halves.py`), weights and the adjoints of scores by powers of two that
the largest of them allow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx

from ...targets import Target
from ..tir import Buffer, bind, shape
from .attention_adjoint import Adjoint
from .attention_fragment_block import Stored, fits, subgroups_for
from .attention_fragment_keys import KeyBlock
from .attention_fragment_queries import QueryBlock
from .attention_heads import Heads
from .attention_rows import PackedRows, is_static
from .attention_vjp import BUSY, add_parts
from .fragments import DEPTH, ROWS
from .halves import Halves
from .kernel import Gpu, build, ceil_div, launch
from .vectors import LANES, fours
from .work import launch_works


def fragments(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the adjoint; None without fragments, or for heads that they do not divide."""
    if not is_static(function.params[2]) or "fragments" not in target.features:
        return None
    gpu, heads = Gpu(target), replace(Heads.of(parameters, target), halves=True)
    if heads.head_dim % DEPTH or heads.heads * heads.head_dim % LANES:
        return None
    if not fits(heads):
        return None

    def body(dy: Buffer, qkv: Buffer, starts: Buffer, rope: Buffer, out: Buffer) -> None:
        packed = PackedRows(heads, qkv, starts, rope)
        rows, columns = shape(dy)
        outer = Halves(rows, rows, columns, lambda row, v: fours(dy)[row, v])
        launch_works([outer])
        subgroups = subgroups_for(gpu, packed.batch * heads.heads, packed.context)
        blocks = ceil_div(packed.context, ROWS * subgroups)
        apart = heads.group > 1 and packed.batch * heads.kv_heads * blocks < BUSY
        adjoint = Adjoint(packed, dy, outer, out, apart)
        stored = Stored(adjoint, outer, rope, out)
        _queries(gpu, stored, subgroups, blocks)
        _keys(gpu, stored, subgroups, blocks)
        if apart:
            add_parts(adjoint)

    return build(function, body)


def _queries(gpu: Gpu, stored: Stored, subgroups: int, blocks: int) -> None:
    """Emit the launch over blocks of queries."""
    heads, packed = stored.heads, stored.packed
    grid = [packed.batch * heads.heads, blocks]
    with launch(grid, [subgroups * gpu.subgroup]) as (task, block, thread):
        b, h = bind(task // heads.heads), bind(task % heads.heads)
        # The last queries see the most keys, so they begin first.
        first = bind((blocks - 1 - block) * (ROWS * subgroups))
        QueryBlock(stored, thread, subgroups, (b, h, first)).emit()


def _keys(gpu: Gpu, stored: Stored, subgroups: int, blocks: int) -> None:
    """Emit the launch over blocks of keys."""
    heads, packed = stored.heads, stored.packed
    tasks = heads.heads if stored.apart else heads.kv_heads
    grid = [packed.batch * tasks, blocks]
    with launch(grid, [subgroups * gpu.subgroup]) as (task, block, thread):
        b, head = bind(task // tasks), bind(task % tasks)
        first = bind(block * (ROWS * subgroups))
        KeyBlock(gpu, stored, thread, subgroups, (b, head, first)).emit()
