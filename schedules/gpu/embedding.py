"""Token embedding: a row of the table for each token, widened to float32."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ...targets import Target
from ..tir import Buffer, Expr, bind, shape
from .elements import has_static_columns, over_rows, splat, store
from .kernel import Gpu, build
from .table import elements as table_elements
from .table import is_readable


def embed(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``x[t, h] = table[tokens[t], h] * scale[tokens[t]]``; the scale is optional."""
    gpu = Gpu(target)
    if not has_static_columns(function, 1) or not is_readable(gpu, function.params[1]):
        return None

    def body(tokens: Buffer, table: Buffer, *rest: Buffer) -> None:
        *scale, x = rest
        rows, columns = shape(x)

        def widen(t: Expr, h: Expr, lanes: int) -> None:
            token = bind(tokens[t])
            value = table_elements(gpu, table, token, h)
            store(x, value * splat(scale[0][token], lanes) if scale else value, t, h)

        over_rows(gpu, rows, columns, widen)

    return build(function, body)
