"""The adjoint of attention, in two launches: blocks of queries, then blocks of keys.

With weights P, outer adjoint dO and ``dP = dO V^T``, the adjoint of the scores is ``dS = P (dP -
rowsum(P dP)) / sqrt(D)``; then ``dQ = dS K``, ``dK = dS^T Q`` and ``dV = P^T dO`` (Dao et al. 2022,
arXiv 2205.14135, appendix B.4). P and dP are computed again wherever they are needed. The first
launch finds the two sums of each row of scores, leaves them for the second, and computes dQ.

Nothing is added to by two work-groups, so the result does not depend on their order. Where few key
heads serve many query heads, a work-group takes one query head, and a third launch adds those that
share a key head.

Where the device has float16, launches before these make the rows halves: queries, keys and values
as they are, the outer adjoint scaled (`halves.py`). Weights and all sums are float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import tirx

from ...targets import Target
from ..tir import Buffer, Expr, bind, shape
from .attention_adjoint import Adjoint
from .attention_heads import Heads
from .attention_rows import PackedRows, is_static
from .attention_vectors import zero
from .attention_vjp_blocks import BLOCK, KeyBlock, QueryBlock
from .halves import Halves
from .kernel import Gpu, build, ceil_div, elements, launch
from .vectors import LANES, fours
from .work import launch_works

BUSY = 512
"""Work-groups that keep a large device busy."""


def attention_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the adjoint of the fused queries, keys and values."""
    if not is_static(function.params[2]):
        return None
    gpu, heads = Gpu(target), Heads.of(parameters, target)
    heads = replace(heads, halves=gpu.halves and heads.heads * heads.head_dim % LANES == 0)

    def body(dy: Buffer, qkv: Buffer, starts: Buffer, rope: Buffer, out: Buffer) -> None:
        packed = PackedRows(heads, qkv, starts, rope)
        outer = None
        if heads.halves:
            rows, columns = shape(dy)
            outer = Halves(rows, rows, columns, lambda row, v: fours(dy)[row, v])
            launch_works([outer])
        blocks = ceil_div(packed.context, BLOCK)
        apart = heads.group > 1 and packed.batch * heads.kv_heads * blocks < BUSY
        adjoint = Adjoint(packed, dy, outer, out, apart)
        _queries(adjoint, blocks)
        _keys(adjoint, blocks)
        if apart:
            add_parts(adjoint)

    return build(function, body)


def _queries(adjoint: Adjoint, blocks: int) -> None:
    """Emit the launch over blocks of queries."""
    packed, heads = adjoint.packed, adjoint.heads
    with launch([packed.batch * heads.heads, blocks], [heads.threads]) as (task, block, thread):
        b, h = bind(task // heads.heads), bind(task % heads.heads)
        # The last queries see the most keys, so they begin first.
        first = bind((blocks - 1 - block) * BLOCK)
        QueryBlock(adjoint, thread, b, h, first).emit()


def _keys(adjoint: Adjoint, blocks: int) -> None:
    """Emit the launch over blocks of keys."""
    packed, heads = adjoint.packed, adjoint.heads
    tasks = heads.heads if adjoint.apart else heads.kv_heads
    with launch([packed.batch * tasks, blocks], [heads.threads]) as (task, block, thread):
        b, head = bind(task // tasks), bind(task % tasks)
        KeyBlock(adjoint, thread, b, head, bind(block * BLOCK)).emit()


def add_parts(adjoint: Adjoint) -> None:
    """Emit the launch that adds what query heads of the same key head have left."""
    heads, packed = adjoint.heads, adjoint.packed
    row_pairs = heads.kv_heads * heads.half

    def pair(index: Expr) -> None:
        row, place = bind(index // row_pairs), bind(index % row_pairs)
        kv, v = bind(place // heads.half), bind(place % heads.half)
        first = bind(kv * heads.group * heads.vectors + v)
        sums = []
        for part in adjoint.parts:
            for half in (0, heads.half):
                total = zero(heads.lanes)
                for g in range(heads.group):
                    total = total + part[row, first + half + g * heads.vectors]
                sums.append(bind(total))
        b, token = bind(row // packed.context), bind(row % packed.context)
        adjoint.write_key(b, kv, token, v, *sums[:2])
        adjoint.write_value(b, kv, token, v, *sums[2:])

    elements(packed.batch * packed.context * row_pairs, heads.threads, pair)
