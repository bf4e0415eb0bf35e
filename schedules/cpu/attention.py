"""Attention over rows of packed documents: threads take heads, blocks of queries at a time."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, build, int64, load, loop, splat, static, store
from .attention_blocks import Heads, QueryBlock, clear_rows, rotate
from .isa import Isa


def rotated_keys(
    heads: Heads, qkv: Buffer, starts: Buffer, rope: Buffer, b: Expr, kv: Expr
) -> Buffer:
    """Emit the ``(padded C, D)`` rotated keys of one head; rows past the context are zero."""
    key = T.alloc_buffer((heads.padded, heads.head_dim))
    column = (heads.heads + kv) * heads.head_dim
    with loop(heads.context) as j:
        rotate(
            heads,
            rope,
            bind(j - int64(starts[b, j])),
            lambda d, n: load(qkv, b * heads.context + j, column + d, lanes=n),
            lambda d, value: store(key, value, j, d),
        )
    clear_rows(heads, key, heads.context, heads.padded)
    return key


def attention(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out attention; each head rotates its keys again, which is little beside its scores."""
    batch, context = (static(extent) for extent in function.params[1].shape)
    if batch is None or context is None or int(parameters["head_dim"]) % 16:
        return None
    heads = Heads(Isa(target), parameters, context)

    def body(qkv: Buffer, starts: Buffer, rope: Buffer, out: Buffer) -> None:
        with loop(batch * heads.heads, parallel=True) as task:
            b, h = bind(task // heads.heads), bind(task % heads.heads)
            kv = bind(h // heads.group)
            key = rotated_keys(heads, qkv, starts, rope, b, kv)
            block = QueryBlock(heads)
            with loop(heads.padded // heads.block) as q:
                block.open(starts, b, bind(q * heads.block))
                block.rotate_queries(qkv, rope, b, h)
                _mixed_values(block, key, qkv, out, b, h, kv)

    return build(function, body)


def _mixed_values(
    block: QueryBlock, key: Buffer, qkv: Buffer, out: Buffer, b: Expr, h: Expr, kv: Expr
) -> None:
    heads, n = block.heads, block.heads.lanes
    total = block.softmax(key)
    inverse = T.alloc_buffer((heads.block,))
    for v in range(2):
        store(inverse, splat(1.0, n) / total[0, v], v * n)
    column = (heads.heads + heads.kv_heads + kv) * heads.head_dim

    def write(r: Expr, d: Expr, vector: Expr) -> None:
        row = b * heads.context + block.first + r
        value = vector * splat(inverse[r], n)
        block.when_token(r, lambda: store(out, value, row, h * heads.head_dim + d))

    block.mix(
        block.scores,
        lambda j, d: load(qkv, b * heads.context + j, column + d, lanes=n),
        write,
    )
