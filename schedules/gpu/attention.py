"""Attention over rows of packed documents: a work-group for a head and a block of its queries."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind
from .attention_heads import Heads, Operand, Rows
from .attention_rows import PackedRows, Visible, is_static, key_blocks
from .attention_softmax import LARGE_BLOCKS, SMALL_BLOCKS, Attention, block_shape
from .attention_vectors import matrix_of_vectors
from .kernel import Gpu, build, ceil_div, launch
from .ternary_tile import cores

EACH = 2
"""Work-groups for each core from which on their blocks may be large."""


def attention(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out attention; each work-group rotates the keys it reads."""
    if not is_static(function.params[1]):
        return None
    heads = Heads.of(parameters, target)

    def body(qkv: Buffer, starts: Buffer, rope: Buffer, out: Buffer) -> None:
        packed = PackedRows(heads, qkv, starts, rope)
        result = matrix_of_vectors(out, heads.lanes)
        tasks, (queries, keys) = packed.batch * heads.heads, block_shape(heads, LARGE_BLOCKS)
        if tasks * ceil_div(packed.context, queries) < EACH * cores(Gpu(target)):
            queries, keys = block_shape(heads, SMALL_BLOCKS)
        blocks = ceil_div(packed.context, queries)
        grid = [tasks, blocks]
        with launch(grid, [heads.threads]) as (task, block, thread):
            b, h = bind(task // heads.heads), bind(task % heads.heads)
            # The last queries see the most keys, so they begin first.
            first = bind((blocks - 1 - block) * queries)
            query, key, value = (packed.rows(thread, n) for n in (queries, keys, keys))
            attention = Attention(heads, thread, query, keys)
            _block(packed, attention, (key, value), (b, h, first), result)

    return build(function, body)


def _block(
    packed: PackedRows,
    attention: Attention,
    blocks: tuple[Rows, Rows],
    place: tuple[Expr, Expr, Expr],
    out: Buffer,
) -> None:
    """Emit the attention of head h of row b, for the queries from `first` on."""
    heads, query, (key, value), (b, h, first) = packed.heads, attention.query, blocks, place
    kv = bind(h // heads.group)
    visible = Visible(packed, b, [first + row for row in attention.products.rows])
    query.stage(packed.query(b, h), first)

    def stage(block: Expr) -> tuple[Operand, Operand]:
        key.stage(packed.key(b, kv), block)
        value.stage(packed.value(b, kv), block)
        return key, value

    def write(row: Expr, v: Expr, low: Expr, high: Expr) -> None:
        token = bind(b * packed.context + first + row)
        column = bind(h * heads.vectors + v)
        T.buffer_store(out, low, [token, column])
        T.buffer_store(out, high, [token, column + heads.half])

    begin, end = key_blocks(packed, b, first, query.count, attention.keys)
    mixture = attention.attend(begin, end, stage, visible.choose)
    mixture.store(lambda row: first + row < packed.context, write)
