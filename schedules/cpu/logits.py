"""Logits of chosen tokens: dot products along the rows of the head, which is read once."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, build, load, shape, store
from .isa import Isa
from .low_rank import dot_products
from .vector_math import half_to_float


def table_values(isa: Isa, table: Buffer, row: Expr, column: Expr) -> Expr:
    """Return a vector of a float16 or int8 table as float32, without its row's scale."""
    values = load(table, row, column, lanes=isa.lanes)
    if str(table.dtype) == "float16":
        return half_to_float(values, isa.native_half)
    return T.cast(values, f"float32x{isa.lanes}")


def by_rows(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `logits`."""
    isa = Isa(target)

    def body(h: Buffer, table: Buffer, *rest: Buffer) -> None:
        *scale, out = rest
        tokens, columns = shape(h)

        def put(t: Expr, v: Expr, total: Expr) -> None:
            store(out, total * scale[0][v] if scale else total, t, v)

        dot_products(
            isa,
            tokens,
            shape(table)[0],
            columns,
            lambda t, k: load(h, t, k, lanes=isa.lanes),
            lambda v, k: table_values(isa, table, v, k),
            put,
        )

    return build(function, body)
