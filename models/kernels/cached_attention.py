"""Attention of new tokens over a cache of keys and values, for inference.

The new tokens are a flat list, each with its sequence and its position: a prompt of one sequence,
or a token of every sequence, are the same call.
"""

from __future__ import annotations

from dataclasses import asdict

from tvm import relax, te, tirx
from tvm.script import tirx as T

from .attention import AttentionShape
from .emit import attributes, emit
from .rope import rotated


def _append_function(shape: AttentionShape) -> tirx.PrimFunc:
    """Return the PrimFunc that rotates new keys and stores keys and values in the cache."""
    kv_heads, d, half = shape.kv_heads, shape.head_dim, shape.head_dim // 2
    width, first_key, first_value = shape.width, shape.key_column, shape.value_column

    @T.prim_func(private=True, s_tir=True)
    def append(
        qkv_handle: T.handle,
        sequence_handle: T.handle,
        position_handle: T.handle,
        rope_handle: T.handle,
        key_handle: T.handle,
        value_handle: T.handle,
    ) -> None:
        n, batch, capacity = T.int64(), T.int64(), T.int64()
        qkv = T.match_buffer(qkv_handle, (n, width), "float32")
        sequence = T.match_buffer(sequence_handle, (n,), "int32")
        position = T.match_buffer(position_handle, (n,), "int32")
        rope = T.match_buffer(rope_handle, (capacity, d), "float32")
        key = T.match_buffer(key_handle, (batch, kv_heads, d, capacity), "float32")
        value = T.match_buffer(value_handle, (batch, kv_heads, capacity, d), "float32")
        for t, h, x in T.grid(n, kv_heads, half):
            with T.sblock("append"):
                vt, vh, vx = T.axis.remap("SSS", [t, h, x])
                key[sequence[vt], vh, vx, position[vt]] = (
                    qkv[vt, first_key + vh * d + vx] * rope[position[vt], vx]
                    - qkv[vt, first_key + vh * d + half + vx] * rope[position[vt], half + vx]
                )
                key[sequence[vt], vh, half + vx, position[vt]] = (
                    qkv[vt, first_key + vh * d + half + vx] * rope[position[vt], vx]
                    + qkv[vt, first_key + vh * d + vx] * rope[position[vt], half + vx]
                )
                value[sequence[vt], vh, position[vt], vx] = qkv[vt, first_value + vh * d + vx]
                value[sequence[vt], vh, position[vt], half + vx] = qkv[
                    vt, first_value + vh * d + half + vx
                ]

    return append.with_attrs(attributes("append_kv", asdict(shape)))


def cached_attention(
    bb: relax.BlockBuilder,
    qkv: relax.Expr,
    sequence: relax.Expr,
    position: relax.Expr,
    rope: relax.Expr,
    keys: relax.Expr,
    values: relax.Expr,
    shape: AttentionShape,
) -> tuple[relax.Var, relax.Var, relax.Var]:
    """Emit the append of n new tokens to the cache, in place, and their attention over it.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    qkv : relax.Expr
        ``(n, (Hq + 2 Hkv) D)`` float32.
    sequence, position : relax.Expr
        ``(n,)`` int32: which sequence each token belongs to, and its place in it.
    rope : relax.Expr
        ``(M, D)`` float32 table.
    keys : relax.Expr
        ``(S, Hkv, D, M)`` float32, rotated; positions are contiguous so that they are the lanes.
    values : relax.Expr
        ``(S, Hkv, M, D)`` float32.
    shape : AttentionShape
        The heads.

    Returns
    -------
    tuple of relax.Var
        ``(n, Hq D)`` float32 and the two caches.
    """
    append = bb.add_func(_append_function(shape), "append_kv_kernel")
    updated = bb.emit(
        relax.op.call_tir_inplace(
            append,
            [qkv, sequence, position, rope, keys, values],
            [4, 5],
            [keys.ty, values.ty],
        )
    )
    keys = bb.emit(relax.TupleGetItem(updated, 0))
    values = bb.emit(relax.TupleGetItem(updated, 1))
    d, half, group = shape.head_dim, shape.head_dim // 2, shape.heads // shape.kv_heads

    def compute(
        qkv: te.Tensor,
        sequence: te.Tensor,
        position: te.Tensor,
        rope: te.Tensor,
        keys: te.Tensor,
        values: te.Tensor,
    ) -> te.Tensor:
        tokens, capacity = qkv.shape[0], values.shape[2]
        query = te.compute(
            (tokens, shape.heads, d),
            lambda t, h, x: rotated(lambda y: qkv[t, h * d + y], rope, position[t], x, half),
            "query",
        )
        k = te.reduce_axis((0, d), "k")
        scores = te.compute(
            (tokens, shape.heads, capacity),
            lambda t, h, j: te.sum(
                query[t, h, k] * keys[sequence[t], tirx.floordiv(h, group), k, j], axis=k
            ),
            "scores",
        )
        masked = te.compute(
            scores.shape,
            lambda t, h, j: tirx.if_then_else(
                j <= position[t],
                scores[t, h, j] * tirx.const(shape.scale, "float32"),
                tirx.const(-1e30, "float32"),
            ),
            "masked",
        )
        m = te.reduce_axis((0, capacity), "m")
        top = te.compute(scores.shape[:2], lambda t, h: te.max(masked[t, h, m], axis=m), "row_max")
        weight = te.compute(
            scores.shape, lambda t, h, j: tirx.exp(masked[t, h, j] - top[t, h]), "weight"
        )
        n = te.reduce_axis((0, capacity), "n")
        total = te.compute(
            scores.shape[:2], lambda t, h: te.sum(weight[t, h, n], axis=n), "row_sum"
        )
        j = te.reduce_axis((0, capacity), "j")
        mixed = te.compute(
            (tokens, shape.heads, d),
            lambda t, h, x: te.sum(
                weight[t, h, j]
                * tirx.if_then_else(
                    # Beyond the position the cache is unwritten memory: never multiply by it.
                    j <= position[t],
                    values[sequence[t], tirx.floordiv(h, group), j, x],
                    tirx.const(0.0, "float32"),
                ),
                axis=j,
            ),
            "mixed",
        )
        return te.compute(
            (tokens, shape.heads * d),
            lambda t, c: (
                mixed[t, tirx.floordiv(c, d), tirx.floormod(c, d)] / total[t, tirx.floordiv(c, d)]
            ),
            "cached_attention",
        )

    out = emit(
        bb,
        "cached_attention",
        compute,
        [qkv, sequence, position, rope, keys, values],
        asdict(shape),
    )
    return out, keys, values
