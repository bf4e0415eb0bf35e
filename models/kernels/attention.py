"""Causal grouped-query attention with rotary positions, kept inside documents, for training.

A row of C tokens holds several documents: token i of a row attends to the tokens ``starts[i] .. i``
and its position is ``i - starts[i]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tvm import relax, te, tirx

from .emit import Parameters, emit, emit_differentiable, register_adjoint
from .rope import rotated, unrotated


@dataclass(frozen=True)
class AttentionShape:
    """The heads of an attention block: Hq query heads share Hkv key and value heads of width D."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Columns of the fused query, key and value input: (Hq + 2 Hkv) D."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def key_column(self) -> int:
        """First column of the keys in the fused input."""
        return self.heads * self.head_dim

    @property
    def value_column(self) -> int:
        """First column of the values in the fused input."""
        return (self.heads + self.kv_heads) * self.head_dim

    @property
    def scale(self) -> float:
        """Factor on the scores: 1 / sqrt(D)."""
        return 1.0 / math.sqrt(self.head_dim)


class _Scores:
    """The stages that the forward pass and its adjoint share, for rows of C tokens."""

    def __init__(
        self, shape: AttentionShape, qkv: te.Tensor, starts: te.Tensor, rope: te.Tensor
    ) -> None:
        self.shape, self.qkv, self.starts, self.rope = shape, qkv, starts, rope
        self.batch, self.context = starts.shape
        d, half = shape.head_dim, shape.head_dim // 2
        group = shape.heads // shape.kv_heads
        self.query = self._rotated("query", shape.heads, 0)
        self.key = self._rotated("key", shape.kv_heads, shape.key_column)
        k = te.reduce_axis((0, d), "k")
        extent = (self.batch, shape.heads, self.context, self.context)
        scores = te.compute(
            extent,
            lambda b, h, i, j: te.sum(
                self.query[b, h, i, k] * self.key[b, tirx.floordiv(h, group), j, k], axis=k
            ),
            "scores",
        )
        masked = te.compute(
            extent,
            lambda b, h, i, j: tirx.if_then_else(
                tirx.all(j <= i, j >= starts[b, i]),
                scores[b, h, i, j] * tirx.const(shape.scale, "float32"),
                tirx.const(-1e30, "float32"),
            ),
            "masked",
        )
        m = te.reduce_axis((0, self.context), "m")
        top = te.compute(extent[:3], lambda b, h, i: te.max(masked[b, h, i, m], axis=m), "row_max")
        weight = te.compute(
            extent, lambda b, h, i, j: tirx.exp(masked[b, h, i, j] - top[b, h, i]), "weight"
        )
        n = te.reduce_axis((0, self.context), "n")
        total = te.compute(
            extent[:3], lambda b, h, i: te.sum(weight[b, h, i, n], axis=n), "row_sum"
        )
        self.probability = te.compute(
            extent, lambda b, h, i, j: weight[b, h, i, j] / total[b, h, i], "probability"
        )
        self.half = half

    def position(self, b: tirx.PrimExpr, i: tirx.PrimExpr) -> tirx.PrimExpr:
        """Return the position of token i of row b in its document."""
        return i - self.starts[b, i]

    def _rotated(self, name: str, heads: int, column: int) -> te.Tensor:
        d = self.shape.head_dim
        return te.compute(
            (self.batch, heads, self.context, d),
            lambda b, h, i, e: rotated(
                lambda x: self.qkv[b * self.context + i, column + h * d + x],
                self.rope,
                self.position(b, i),
                e,
                d // 2,
            ),
            name,
        )

    def value(
        self, b: tirx.PrimExpr, h: tirx.PrimExpr, j: tirx.PrimExpr, e: tirx.PrimExpr
    ) -> tirx.PrimExpr:
        """Return element e of the value of token j under key-value head h."""
        d = self.shape.head_dim
        return self.qkv[b * self.context + j, self.shape.value_column + h * d + e]


def attention(
    bb: relax.BlockBuilder,
    qkv: relax.Expr,
    starts: relax.Expr,
    rope: relax.Expr,
    shape: AttentionShape,
) -> relax.Var:
    """Emit causal attention over rows of packed documents.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    qkv : relax.Expr
        ``(B C, (Hq + 2 Hkv) D)`` float32: queries, keys, values before rotation.
    starts : relax.Expr
        ``(B, C)`` int32, index in the row of the first token of each token's document.
    rope : relax.Expr
        ``(>= C, D)`` float32 table of :func:`rope_table`.
    shape : AttentionShape
        The heads.

    Returns
    -------
    relax.Var
        ``(B C, Hq D)`` float32.
    """

    def compute(qkv: te.Tensor, starts: te.Tensor, rope: te.Tensor) -> te.Tensor:
        s = _Scores(shape, qkv, starts, rope)
        j = te.reduce_axis((0, s.context), "j")
        d, group = shape.head_dim, shape.heads // shape.kv_heads

        def mixed(t: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
            b, i = tirx.floordiv(t, s.context), tirx.floormod(t, s.context)
            h, e = tirx.floordiv(c, d), tirx.floormod(c, d)
            kv = tirx.floordiv(h, group)
            return te.sum(s.probability[b, h, i, j] * s.value(b, kv, j, e), axis=j)

        return te.compute((qkv.shape[0], shape.heads * d), mixed, "attention")

    return emit_differentiable(bb, "attention", compute, [qkv, starts, rope], asdict(shape))


def attention_vjp(
    bb: relax.BlockBuilder,
    dy: relax.Expr,
    qkv: relax.Expr,
    starts: relax.Expr,
    rope: relax.Expr,
    shape: AttentionShape,
) -> relax.Var:
    """Emit the ``(B C, (Hq + 2 Hkv) D)`` adjoint of `qkv` for the ``(B C, Hq D)`` adjoint `dy`."""
    d, half = shape.head_dim, shape.head_dim // 2
    group = shape.heads // shape.kv_heads

    def compute(dy: te.Tensor, qkv: te.Tensor, starts: te.Tensor, rope: te.Tensor) -> te.Tensor:
        s = _Scores(shape, qkv, starts, rope)
        context, extent = s.context, s.probability.shape
        e = te.reduce_axis((0, d), "e")
        dprob = te.compute(
            extent,
            lambda b, h, i, j: te.sum(
                dy[b * context + i, h * d + e] * s.value(b, tirx.floordiv(h, group), j, e), axis=e
            ),
            "dprobability",
        )
        m = te.reduce_axis((0, context), "m")
        mean = te.compute(
            extent[:3],
            lambda b, h, i: te.sum(s.probability[b, h, i, m] * dprob[b, h, i, m], axis=m),
            "row_mean",
        )
        dscore = te.compute(
            extent,
            lambda b, h, i, j: (
                s.probability[b, h, i, j]
                * (dprob[b, h, i, j] - mean[b, h, i])
                * tirx.const(shape.scale, "float32")
            ),
            "dscore",
        )
        j = te.reduce_axis((0, context), "j")
        dquery = te.compute(
            (s.batch, shape.heads, context, d),
            lambda b, h, i, x: te.sum(
                dscore[b, h, i, j] * s.key[b, tirx.floordiv(h, group), j, x], axis=j
            ),
            "dquery",
        )
        g = te.reduce_axis((0, group), "g")
        i = te.reduce_axis((0, context), "i")
        dkey = te.compute(
            (s.batch, shape.kv_heads, context, d),
            lambda b, h, j, x: te.sum(
                dscore[b, h * group + g, i, j] * s.query[b, h * group + g, i, x], axis=[g, i]
            ),
            "dkey",
        )
        g2 = te.reduce_axis((0, group), "g2")
        i2 = te.reduce_axis((0, context), "i2")
        dvalue = te.compute(
            (s.batch, shape.kv_heads, context, d),
            lambda b, h, j, x: te.sum(
                s.probability[b, h * group + g2, i2, j]
                * dy[b * context + i2, (h * group + g2) * d + x],
                axis=[g2, i2],
            ),
            "dvalue",
        )

        def adjoint(t: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
            b, row = tirx.floordiv(t, context), tirx.floormod(t, context)
            p = s.position(b, row)
            h, x = tirx.floordiv(c, d), tirx.floormod(c, d)
            key_head, value_head = h - shape.heads, h - shape.heads - shape.kv_heads
            return tirx.if_then_else(
                h < shape.heads,
                unrotated(lambda x: dquery[b, h, row, x], rope, p, x, half),
                tirx.if_then_else(
                    h < shape.heads + shape.kv_heads,
                    unrotated(lambda x: dkey[b, key_head, row, x], rope, p, x, half),
                    dvalue[b, value_head, row, x],
                ),
            )

        return te.compute(qkv.shape, adjoint, "attention_vjp")

    return emit(bb, "attention_vjp", compute, [dy, qkv, starts, rope], asdict(shape))


@register_adjoint("attention")
def _adjoint(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    qkv, starts, rope = arguments
    shape = AttentionShape(**{name: int(value) for name, value in parameters.items()})
    return [attention_vjp(bb, dy, qkv, starts, rope, shape), None, None]
