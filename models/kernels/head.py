"""The language-model head: logits for sampling, and the masked cross-entropy with its gradient.

The head's matrix is float16, or int8 with one float32 scale a row. A label of -100 carries no
loss. The loss kernel returns the gradient with respect to its input at once, because the logits
it needs must never all exist: a rule computes them chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, te, tirx

from .emit import emit

IGNORE = -100
"""The label of a position without loss."""


def _logits(h: te.Tensor, table: te.Tensor, scale: Sequence[te.Tensor]) -> te.Tensor:
    k = te.reduce_axis((0, table.shape[1]), "k")
    product = te.compute(
        (h.shape[0], table.shape[0]),
        lambda t, v: te.sum(h[t, k] * tirx.Cast("float32", table[v, k]), axis=k),
        "product",
    )
    if not scale:
        return product
    return te.compute(product.shape, lambda t, v: product[t, v] * scale[0][v], "logits")


def logits(
    bb: relax.BlockBuilder, h: relax.Expr, table: relax.Expr, scale: relax.Expr | None
) -> relax.Var:
    """Emit ``(T, V)`` float32 logits of ``h (T, H)`` float32 under ``table (V, H)``."""

    def compute(h: te.Tensor, table: te.Tensor, *scale: te.Tensor) -> te.Tensor:
        return _logits(h, table, scale)

    return emit(bb, "logits", compute, [h, table] if scale is None else [h, table, scale])


def head_loss(
    bb: relax.BlockBuilder,
    h: relax.Expr,
    table: relax.Expr,
    scale: relax.Expr | None,
    labels: relax.Expr,
    inverse_count: relax.Expr | None,
) -> relax.Var:
    """Emit the summed cross-entropy of a batch and, for training, its gradient.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    h : relax.Expr
        ``(T, H)`` float32, after the final norm.
    table : relax.Expr
        ``(V, H)`` float16 or int8.
    scale : relax.Expr, optional
        ``(V,)`` float32, with an int8 table only.
    labels : relax.Expr
        ``(T,)`` int32 in [0, V), or -100.
    inverse_count : relax.Expr, optional
        ``(1,)`` float32, the factor on the gradient; None asks for the loss alone.

    Returns
    -------
    relax.Var
        ``(T,)`` float32 loss of each token (0 where the label is -100); with `inverse_count` the
        tuple of it and ``(T, H)`` float32, the gradient of ``inverse_count * sum(loss)``.
    """

    def compute(h: te.Tensor, table: te.Tensor, labels: te.Tensor, *rest: te.Tensor) -> object:
        row_scale = rest[: 0 if scale is None else 1]
        values = _logits(h, table, row_scale)
        tokens, vocabulary = values.shape
        v = te.reduce_axis((0, vocabulary), "v")
        top = te.compute((tokens,), lambda t: te.max(values[t, v], axis=v), "row_max")
        u = te.reduce_axis((0, vocabulary), "u")
        total = te.compute(
            (tokens,), lambda t: te.sum(tirx.exp(values[t, u] - top[t]), axis=u), "row_sum"
        )
        loss = te.compute(
            (tokens,),
            lambda t: tirx.if_then_else(
                labels[t] >= 0,
                tirx.log(total[t]) + top[t] - values[t, tirx.max(labels[t], 0)],
                tirx.const(0.0, "float32"),
            ),
            "loss",
        )
        if inverse_count is None:
            return loss
        factor = rest[-1]
        dlogits = te.compute(
            values.shape,
            lambda t, v: tirx.if_then_else(
                labels[t] >= 0,
                factor[0]
                * (
                    tirx.exp(values[t, v] - top[t]) / total[t]
                    - tirx.Cast("float32", v == labels[t])
                ),
                tirx.const(0.0, "float32"),
            ),
            "dlogits",
        )
        w = te.reduce_axis((0, vocabulary), "w")

        def adjoint(t: tirx.Var, k: tirx.Var) -> tirx.PrimExpr:
            weight = tirx.Cast("float32", table[w, k])
            if row_scale:
                weight = weight * row_scale[0][w]
            return te.sum(dlogits[t, w] * weight, axis=w)

        return [loss, te.compute(h.shape, adjoint, "dh")]

    arguments = [h, table, labels]
    arguments += [a for a in (scale, inverse_count) if a is not None]
    name = "head_loss" if inverse_count is not None else "head_loss_forward"
    return emit(bb, name, compute, arguments, {"scaled": int(scale is not None)})
