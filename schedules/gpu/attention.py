"""Attention over rows of packed documents: a work-group for a head and a block of its queries."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind
from .attention_heads import Heads, Operand
from .attention_rows import PackedRows, Visible, is_static, key_blocks
from .attention_softmax import QUERIES, Attention, keys_of_block
from .attention_vectors import matrix_of_vectors
from .kernel import build, ceil_div, launch


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
        blocks = ceil_div(packed.context, QUERIES)
        grid = [packed.batch * heads.heads, blocks]
        with launch(grid, [heads.threads]) as (task, block, thread):
            b, h = bind(task // heads.heads), bind(task % heads.heads)
            # The last queries see the most keys, so they begin first.
            first = bind((blocks - 1 - block) * QUERIES)
            _block(packed, thread, b, h, first, result)

    return build(function, body)


def _block(packed: PackedRows, thread: Expr, b: Expr, h: Expr, first: Expr, out: Buffer) -> None:
    heads, keys = packed.heads, keys_of_block(packed.heads)
    kv = bind(h // heads.group)
    query, key, value = (packed.rows(thread, n) for n in (QUERIES, keys, keys))
    attention = Attention(heads, thread, query, keys)
    visible = Visible(packed, b, [first + row for row in attention.products.rows])
    query.stage(packed.query(b, h), first)

    def stage(block: Expr) -> tuple[Operand, Operand]:
        key.stage(packed.key(b, kv), block)
        value.stage(packed.value(b, kv), block)
        return key, value

    def write(row: Expr, v: Expr, low: Expr, high: Expr) -> None:
        place = bind(b * packed.context + first + row)
        column = bind(h * heads.vectors + v)
        T.buffer_store(out, low, [place, column])
        T.buffer_store(out, high, [place, column + heads.half])

    begin, end = key_blocks(packed, b, first, QUERIES, keys)
    mixture = attention.attend(begin, end, stage, visible.choose)
    mixture.store(lambda row: first + row < packed.context, write)
