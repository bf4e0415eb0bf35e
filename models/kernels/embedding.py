"""Token embedding from a float16 table or an int8 table with one scale a row."""

from __future__ import annotations

from tvm import relax, te, tirx

from .emit import emit


def embed(
    bb: relax.BlockBuilder, tokens: relax.Expr, table: relax.Expr, scale: relax.Expr | None
) -> relax.Var:
    """Emit ``x[t, h] = table[tokens[t], h] * scale[tokens[t]]``.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    tokens : relax.Expr
        ``(T,)`` int32, each below V.
    table : relax.Expr
        ``(V, H)`` float16 or int8.
    scale : relax.Expr, optional
        ``(V,)`` float32, with an int8 table only.

    Returns
    -------
    relax.Var
        ``(T, H)`` float32.
    """

    def compute(tokens: te.Tensor, table: te.Tensor, *scale: te.Tensor) -> te.Tensor:
        def element(t: tirx.Var, h: tirx.Var) -> tirx.PrimExpr:
            value = tirx.Cast("float32", table[tokens[t], h])
            return value * scale[0][tokens[t]] if scale else value

        return te.compute((tokens.shape[0], table.shape[1]), element, "embed")

    arguments = [tokens, table] if scale is None else [tokens, table, scale]
    return emit(bb, "embed", compute, arguments)
