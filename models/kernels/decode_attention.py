"""Attention of one new token over the cache, to which its key and value are added.

The same as :func:`cached_attention` of a single token, as one kernel: the token need not wait for
its own key to reach the cache.
"""

from __future__ import annotations

from dataclasses import asdict

from tvm import relax, tirx
from tvm.script import tirx as T

from .attention import AttentionShape
from .emit import attributes


def _function(shape: AttentionShape) -> tirx.PrimFunc:
    """Return the PrimFunc, which writes to the caches in place and has one output."""
    heads, kv_heads, d, half = shape.heads, shape.kv_heads, shape.head_dim, shape.head_dim // 2
    group, scale = heads // kv_heads, float(shape.scale)
    width, first_value = shape.width, shape.value_column

    @T.prim_func(private=True, s_tir=True)
    def attend(
        qkv_handle: T.handle,
        sequence_handle: T.handle,
        position_handle: T.handle,
        rope_handle: T.handle,
        key_handle: T.handle,
        value_handle: T.handle,
        out_handle: T.handle,
    ) -> None:
        batch, capacity = T.int64(), T.int64()
        qkv = T.match_buffer(qkv_handle, (1, width), "float32")
        sequence = T.match_buffer(sequence_handle, (1,), "int32")
        position = T.match_buffer(position_handle, (1,), "int32")
        rope = T.match_buffer(rope_handle, (capacity, d), "float32")
        key = T.match_buffer(key_handle, (batch, kv_heads, d, capacity), "float32")
        value = T.match_buffer(value_handle, (batch, kv_heads, capacity, d), "float32")
        out = T.match_buffer(out_handle, (1, heads * d), "float32")
        rotated = T.alloc_buffer((heads + kv_heads, d))
        scores = T.alloc_buffer((heads, capacity))
        largest = T.alloc_buffer((heads,))
        total = T.alloc_buffer((heads,))
        mixed = T.alloc_buffer((heads, d))
        # Queries and keys lie side by side, and are rotated alike.
        for h, x in T.grid(heads + kv_heads, half):
            with T.sblock("rotate"):
                vh, vx = T.axis.remap("SS", [h, x])
                rotated[vh, vx] = (
                    qkv[0, vh * d + vx] * rope[position[0], vx]
                    - qkv[0, vh * d + half + vx] * rope[position[0], half + vx]
                )
                rotated[vh, half + vx] = (
                    qkv[0, vh * d + half + vx] * rope[position[0], vx]
                    + qkv[0, vh * d + vx] * rope[position[0], half + vx]
                )
        for h, x in T.grid(kv_heads, d):
            with T.sblock("append"):
                vh, vx = T.axis.remap("SS", [h, x])
                key[sequence[0], vh, vx, position[0]] = rotated[heads + vh, vx]
                value[sequence[0], vh, position[0], vx] = qkv[0, first_value + vh * d + vx]
        # Beyond the position the cache is unwritten memory: it is never read.
        for h, j, x in T.grid(heads, capacity, d):
            with T.sblock("scores"):
                vh, vj, vx = T.axis.remap("SSR", [h, j, x])
                with T.init():
                    scores[vh, vj] = 0.0
                if vj <= T.Cast("int64", position[0]):
                    scores[vh, vj] = scores[vh, vj] + scale * (
                        rotated[vh, vx] * key[sequence[0], vh // group, vx, vj]
                    )
        for h, j in T.grid(heads, capacity):
            with T.sblock("largest"):
                vh, vj = T.axis.remap("SR", [h, j])
                with T.init():
                    largest[vh] = -1e30
                if vj <= T.Cast("int64", position[0]):
                    largest[vh] = T.max(largest[vh], scores[vh, vj])
        for h, j in T.grid(heads, capacity):
            with T.sblock("total"):
                vh, vj = T.axis.remap("SR", [h, j])
                with T.init():
                    total[vh] = 0.0
                if vj <= T.Cast("int64", position[0]):
                    total[vh] = total[vh] + T.exp(scores[vh, vj] - largest[vh])
        for h, x, j in T.grid(heads, d, capacity):
            with T.sblock("mixed"):
                vh, vx, vj = T.axis.remap("SSR", [h, x, j])
                with T.init():
                    mixed[vh, vx] = 0.0
                if vj <= T.Cast("int64", position[0]):
                    mixed[vh, vx] = mixed[vh, vx] + (
                        T.exp(scores[vh, vj] - largest[vh])
                        * value[sequence[0], vh // group, vj, vx]
                    )
        for h, x in T.grid(heads, d):
            with T.sblock("out"):
                vh, vx = T.axis.remap("SS", [h, x])
                out[0, vh * d + vx] = mixed[vh, vx] / total[vh]

    return attend.with_attrs(attributes("decode_attention", asdict(shape)))


def decode_attention(
    bb: relax.BlockBuilder,
    qkv: relax.Expr,
    sequence: relax.Expr,
    position: relax.Expr,
    rope: relax.Expr,
    keys: relax.Expr,
    values: relax.Expr,
    shape: AttentionShape,
) -> tuple[relax.Var, relax.Var, relax.Var]:
    """Emit the append of one new token to the cache, in place, and its attention over it.

    Parameters and results are those of :func:`cached_attention` with n = 1.
    """
    width = shape.heads * shape.head_dim
    result = bb.emit(
        relax.op.call_tir_inplace(
            bb.add_func(_function(shape), "decode_attention_kernel"),
            [qkv, sequence, position, rope, keys, values],
            [-1, 4, 5],
            [relax.TensorType((1, width), "float32"), keys.ty, values.ty],
        )
    )
    out, keys, values = (bb.emit(relax.TupleGetItem(result, i)) for i in range(3))
    return out, keys, values
