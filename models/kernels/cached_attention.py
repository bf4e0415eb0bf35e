"""Attention of new tokens over a cache of keys and values, for inference.

The new tokens are a flat list, each with its sequence and its position: a prompt of one sequence,
or a token of every sequence, are the same call. The cache is of any format of `kv_cache.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .attention import AttentionShape
from .emit import attributes, emit
from .kv_cache import CacheFormat, cache_arguments, format_of, write_token
from .rope import rotated


def rotated_at(
    qkv: Any, rope: Any, row: tuple[Any, Any], column: int | tirx.PrimExpr, x: Any, half: int
) -> tirx.PrimExpr:
    """Return element x of the head at a column of ``qkv``, rotated.

    `row` are the token and its position.
    """
    token, position = row
    return rotated(lambda y: qkv[token, column + y], rope, position, x, half)


def _append_function(shape: AttentionShape, form: CacheFormat) -> tirx.PrimFunc:
    """Return the PrimFunc that rotates new keys and stores keys and values in the cache."""
    n, batch, capacity = (tirx.Var(name, "int64") for name in ("n", "batch", "capacity"))
    d, half = shape.head_dim, shape.head_dim // 2
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        qkv = T.arg("qkv", T.buffer((n, shape.width), "float32"))
        sequence = T.arg("sequence", T.buffer((n,), "int32"))
        position = T.arg("position", T.buffer((n,), "int32"))
        rope = T.arg("rope", T.buffer((capacity, d), "float32"))
        cache = cache_arguments(form, shape, batch, capacity)
        with T.serial(0, n) as t, T.serial(0, shape.kv_heads) as h:
            place = (sequence[t], h, position[t])

            def element(which: int, x: Any) -> tirx.PrimExpr:
                if which == 1:
                    return qkv[t, shape.value_column + h * d + x]
                column = shape.key_column + h * d
                return rotated_at(qkv, rope, (t, position[t]), column, x, half)

            write_token(form, shape, cache, place, element)
    return builder.get().with_attrs(attributes("append_kv", asdict(shape)))


def cached_attention(
    bb: relax.BlockBuilder,
    qkv: relax.Expr,
    sequence: relax.Expr,
    position: relax.Expr,
    rope: relax.Expr,
    cache: Sequence[relax.Expr],
    shape: AttentionShape,
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
    cache : sequence of relax.Expr
        The tensors of :meth:`CacheFormat.fields`; keys are stored rotated.
    shape : AttentionShape
        The heads.

    Returns
    -------
    tuple of relax.Var
        ``(n, Hq D)`` float32, and what of the cache was given, updated.
    """
    form = format_of(cache)
    updated = bb.emit(
        relax.op.call_tir_inplace(
            bb.add_func(_append_function(shape, form), "append_kv_kernel"),
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
            word, place = tirx.floordiv(x, form.per_word), tirx.floormod(x, form.per_word)
            stored = keys[s, h, word, j] if which == 0 else values[s, h, j, word]
            element = form.unpack(stored, place)
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
