"""Attention of one new token over the cache, to which its key and value are added.

The same as :func:`cached_attention` of a single token, as one kernel: the token need not wait for
its own key to reach the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .attention import AttentionShape
from .cached_attention import rotated_at
from .emit import attributes
from .kv_cache import CacheFormat, cache_arguments, format_of, write_token


def _function(shape: AttentionShape, form: CacheFormat) -> tirx.PrimFunc:
    """Return the PrimFunc, which writes to the caches in place and has one output."""
    batch, capacity = (tirx.Var(name, "int64") for name in ("batch", "capacity"))
    heads, d, half = shape.heads, shape.head_dim, shape.head_dim // 2
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        qkv = T.arg("qkv", T.buffer((1, shape.width), "float32"))
        sequence = T.arg("sequence", T.buffer((1,), "int32"))
        position = T.arg("position", T.buffer((1,), "int32"))
        rope = T.arg("rope", T.buffer((capacity, d), "float32"))
        cache = cache_arguments(form, shape, batch, capacity)
        out = T.arg("out", T.buffer((1, heads * d), "float32"))
        query = T.alloc_buffer((d,), "float32")
        weight = T.alloc_buffer((capacity,), "float32")
        top, total = (T.alloc_buffer((1,), "float32") for _ in range(2))

        def turned(column: Any, x: Any) -> tirx.PrimExpr:
            return rotated_at(qkv, rope, (0, position[0]), column, x, half)

        with T.serial(0, shape.kv_heads) as h:

            def element(which: int, x: Any) -> tirx.PrimExpr:
                if which == 1:
                    return qkv[0, shape.value_column + h * d + x]
                return turned(shape.key_column + h * d, x)

            write_token(form, shape, cache, (sequence[0], h, position[0]), element)

        def stored(which: int, h: Any, x: Any, j: Any) -> tirx.PrimExpr:
            s, kv = sequence[0], tirx.floordiv(h, heads // shape.kv_heads)
            word = tirx.floordiv(x, form.per_word)
            at = [s, kv, word, j] if which == 0 else [s, kv, j, word]
            found = form.unpack(cache[which][tuple(at)], tirx.floormod(x, form.per_word))
            return found * cache[2 + which][s, kv, j] if form.scaled else found

        with T.serial(0, heads) as h:
            with T.serial(0, d) as x:
                T.buffer_store(query, turned(h * d, x) * T.float32(shape.scale), [x])
            T.buffer_store(top, T.float32(-1e30), [0])
            T.buffer_store(total, T.float32(0.0), [0])
            # Beyond the position the cache is unwritten memory: it is never read.
            with T.serial(0, position[0] + 1) as j:
                T.buffer_store(weight, T.float32(0.0), [j])
                with T.serial(0, d) as x:
                    T.buffer_store(weight, weight[j] + query[x] * stored(0, h, x, j), [j])
                T.buffer_store(top, tirx.max(top[0], weight[j]), [0])
            with T.serial(0, position[0] + 1) as j:
                T.buffer_store(weight, tirx.exp(weight[j] - top[0]), [j])
                T.buffer_store(total, total[0] + weight[j], [0])
            with T.serial(0, d) as x:
                T.buffer_store(query, T.float32(0.0), [x])
                with T.serial(0, position[0] + 1) as j:
                    T.buffer_store(query, query[x] + weight[j] * stored(1, h, x, j), [x])
                T.buffer_store(out, query[x] / total[0], [0, h * d + x])
    return builder.get().with_attrs(attributes("decode_attention", asdict(shape)))


def decode_attention(
    bb: relax.BlockBuilder,
    qkv: relax.Expr,
    sequence: relax.Expr,
    position: relax.Expr,
    rope: relax.Expr,
    cache: Sequence[relax.Expr],
    shape: AttentionShape,
) -> tuple[relax.Var, ...]:
    """Emit the append of one new token to the cache, in place, and its attention over it.

    Parameters and results are those of :func:`cached_attention` with n = 1.
    """
    width = shape.heads * shape.head_dim
    result = bb.emit(
        relax.op.call_tir_inplace(
            bb.add_func(_function(shape, format_of(cache)), "decode_attention_kernel"),
            [qkv, sequence, position, rope, *cache],
            [-1, *range(4, 4 + len(cache))],
            [relax.TensorType((1, width), "float32"), *(part.ty for part in cache)],
        )
    )
    return tuple(bb.emit(relax.TupleGetItem(result, i)) for i in range(1 + len(cache)))
