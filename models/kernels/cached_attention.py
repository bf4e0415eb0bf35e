"""Attention of new tokens over a cache of keys and values, for inference.

The new tokens are a flat list, each with its sequence and its position: a prompt of one sequence,
or a token of every sequence, are the same call.

The cache is float32, or float16, or int8: then a key or value of a head is ``q * scale`` with
``scale = max |x| / 127`` of its own, after which ``q = round(x / scale)``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tvm import relax, te, tirx
from tvm.script import tirx as T

from .attention import AttentionShape
from .emit import attributes, emit
from .rope import rotated

KV_CACHES = {"f32": "float32", "f16": "float16", "int8": "int8"}
"""How a cache can be stored, and the dtype of its elements."""
SMALLEST = 1e-12
"""The least scale of an int8 key or value; a zero has it."""


def cache_types(
    shape: AttentionShape, sequences: int | tirx.Var, capacity: int | tirx.Var, kv_cache: str
) -> dict[str, relax.TensorType]:
    """Return the tensors of a layer's cache by name: keys, values, and of int8 their scales."""
    kv_heads, d, dtype = shape.kv_heads, shape.head_dim, KV_CACHES[kv_cache]
    fields = {
        "keys": relax.TensorType((sequences, kv_heads, d, capacity), dtype),
        "values": relax.TensorType((sequences, kv_heads, capacity, d), dtype),
    }
    if dtype == "int8":
        for name in ("key_scales", "value_scales"):
            fields[name] = relax.TensorType((sequences, kv_heads, capacity), "float32")
    return fields


def _append_scaled(shape: AttentionShape) -> tirx.PrimFunc:
    """Return the PrimFunc that rotates new keys and stores keys and values in an int8 cache."""
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
        key_scale_handle: T.handle,
        value_scale_handle: T.handle,
    ) -> None:
        n, batch, capacity = T.int64(), T.int64(), T.int64()
        qkv = T.match_buffer(qkv_handle, (n, width), "float32")
        sequence = T.match_buffer(sequence_handle, (n,), "int32")
        position = T.match_buffer(position_handle, (n,), "int32")
        rope = T.match_buffer(rope_handle, (capacity, d), "float32")
        key = T.match_buffer(key_handle, (batch, kv_heads, d, capacity), "int8")
        value = T.match_buffer(value_handle, (batch, kv_heads, capacity, d), "int8")
        key_scale = T.match_buffer(key_scale_handle, (batch, kv_heads, capacity), "float32")
        value_scale = T.match_buffer(value_scale_handle, (batch, kv_heads, capacity), "float32")
        # Both of a token and head: the rotated key, then the value.
        both = T.alloc_buffer((n, kv_heads, 2 * d))
        largest = T.alloc_buffer((n, kv_heads, 2))
        for t, h, x in T.grid(n, kv_heads, half):
            with T.sblock("rotate"):
                vt, vh, vx = T.axis.remap("SSS", [t, h, x])
                both[vt, vh, vx] = (
                    qkv[vt, first_key + vh * d + vx] * rope[position[vt], vx]
                    - qkv[vt, first_key + vh * d + half + vx] * rope[position[vt], half + vx]
                )
                both[vt, vh, half + vx] = (
                    qkv[vt, first_key + vh * d + half + vx] * rope[position[vt], vx]
                    + qkv[vt, first_key + vh * d + vx] * rope[position[vt], half + vx]
                )
                both[vt, vh, d + vx] = qkv[vt, first_value + vh * d + vx]
                both[vt, vh, d + half + vx] = qkv[vt, first_value + vh * d + half + vx]
        for t, h, w, x in T.grid(n, kv_heads, 2, d):
            with T.sblock("largest"):
                vt, vh, vw, vx = T.axis.remap("SSSR", [t, h, w, x])
                with T.init():
                    largest[vt, vh, vw] = T.float32(127.0 * SMALLEST)
                largest[vt, vh, vw] = T.max(largest[vt, vh, vw], T.abs(both[vt, vh, vw * d + vx]))
        for t, h in T.grid(n, kv_heads):
            with T.sblock("scales"):
                vt, vh = T.axis.remap("SS", [t, h])
                key_scale[sequence[vt], vh, position[vt]] = largest[vt, vh, 0] / 127.0
                value_scale[sequence[vt], vh, position[vt]] = largest[vt, vh, 1] / 127.0
        for t, h, x in T.grid(n, kv_heads, d):
            with T.sblock("append"):
                vt, vh, vx = T.axis.remap("SSS", [t, h, x])
                key[sequence[vt], vh, vx, position[vt]] = T.Cast(
                    "int8", T.nearbyint(both[vt, vh, vx] * (127.0 / largest[vt, vh, 0]))
                )
                value[sequence[vt], vh, position[vt], vx] = T.Cast(
                    "int8", T.nearbyint(both[vt, vh, d + vx] * (127.0 / largest[vt, vh, 1]))
                )

    return append.with_attrs(attributes("append_kv", asdict(shape)))


def _append_function(shape: AttentionShape, dtype: str = "float32") -> tirx.PrimFunc:
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
        key = T.match_buffer(key_handle, (batch, kv_heads, d, capacity), dtype)
        value = T.match_buffer(value_handle, (batch, kv_heads, capacity, d), dtype)
        for t, h, x in T.grid(n, kv_heads, half):
            with T.sblock("append"):
                vt, vh, vx = T.axis.remap("SSS", [t, h, x])
                key[sequence[vt], vh, vx, position[vt]] = (
                    qkv[vt, first_key + vh * d + vx] * rope[position[vt], vx]
                    - qkv[vt, first_key + vh * d + half + vx] * rope[position[vt], half + vx]
                ).astype(dtype)
                key[sequence[vt], vh, half + vx, position[vt]] = (
                    qkv[vt, first_key + vh * d + half + vx] * rope[position[vt], vx]
                    + qkv[vt, first_key + vh * d + vx] * rope[position[vt], half + vx]
                ).astype(dtype)
                value[sequence[vt], vh, position[vt], vx] = qkv[
                    vt, first_value + vh * d + vx
                ].astype(dtype)
                value[sequence[vt], vh, position[vt], half + vx] = qkv[
                    vt, first_value + vh * d + half + vx
                ].astype(dtype)

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
    *scales: relax.Expr,
) -> tuple[relax.Var, ...]:
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
        ``(S, Hkv, D, M)`` float32, float16 or int8, rotated; positions are contiguous so that they
        are the lanes.
    values : relax.Expr
        ``(S, Hkv, M, D)`` of the same dtype.
    shape : AttentionShape
        The heads.
    *scales : relax.Expr
        Of an int8 cache the keys' and the values' scales, ``(S, Hkv, M)`` float32.

    Returns
    -------
    tuple of relax.Var
        ``(n, Hq D)`` float32, and what of the cache was given, updated.
    """
    cache = [keys, values, *scales]
    function = _append_scaled(shape) if scales else _append_function(shape, str(keys.ty.dtype))
    updated = bb.emit(
        relax.op.call_tir_inplace(
            bb.add_func(function, "append_kv_kernel"),
            [qkv, sequence, position, rope, *cache],
            list(range(4, 4 + len(cache))),
            [part.ty for part in cache],
        )
    )
    cache = [bb.emit(relax.TupleGetItem(updated, i)) for i in range(len(cache))]
    d, half, group = shape.head_dim, shape.head_dim // 2, shape.heads // shape.kv_heads

    def compute(
        qkv: te.Tensor,
        sequence: te.Tensor,
        position: te.Tensor,
        rope: te.Tensor,
        keys: te.Tensor,
        values: te.Tensor,
        *scales: te.Tensor,
    ) -> te.Tensor:
        def stored(which: int, s: Any, h: Any, x: Any, j: Any) -> tirx.PrimExpr:
            element = keys[s, h, x, j] if which == 0 else values[s, h, j, x]
            element = element.astype("float32")
            return element * scales[which][s, h, j] if scales else element

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
                query[t, h, k] * stored(0, sequence[t], tirx.floordiv(h, group), k, j), axis=k
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
                    stored(1, sequence[t], tirx.floordiv(h, group), x, j),
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
        [qkv, sequence, position, rope, *cache],
        asdict(shape),
    )
    return out, *cache
