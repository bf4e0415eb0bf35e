"""Token embedding: one row of the table a token, widened to float32."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, build, load, shape, splat, store
from .isa import vector_lanes
from .loops import over, over_rows
from .vector_math import half_to_float


def embed(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``x[t, h] = table[tokens[t], h] * scale[tokens[t]]``; the scale is optional."""
    lanes = vector_lanes(target)
    # x86-64 alone has no instruction that widens a half.
    native = bool(target.features & {"avx2", "neon_dot"})

    def body(tokens: Buffer, table: Buffer, *rest: Buffer) -> None:
        *scale, x = rest
        rows, columns = shape(x)

        def row(t: Expr) -> None:
            token = bind(tokens[t])
            factor = bind(scale[0][token]) if scale else None

            def widen(h: Expr, n: int) -> None:
                stored = load(table, token, h, lanes=n)
                if factor is None:
                    store(x, half_to_float(stored, native), t, h)
                else:
                    wide = T.cast(stored, f"float32x{n}" if n > 1 else "float32")
                    store(x, wide * splat(factor, n), t, h)

            over(columns, lanes, widen)

        over_rows(rows, columns, row)

    return build(function, body)
