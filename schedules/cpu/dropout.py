"""Dropout: the mask is a hash of the place, one 32-bit lane an element."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, build, constants, load, shape, splat, store
from .isa import vector_lanes
from .loops import over, over_rows


def _unsigned(number: int, lanes: int, dtype: str = "uint32") -> Expr:
    return splat(tirx.const(number, dtype), lanes)


def lowbias32(value: Expr, lanes: int) -> Expr:
    """Return `lowbias32` of each lane; the meaning is in ``models/kernels/dropout.py``."""
    suffix = f"x{lanes}" if lanes > 1 else ""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = bind(value ^ (value >> _unsigned(shift, lanes)))
        # TVM takes a product of uint32 for one that never overflows; LLVM narrows this one back.
        wide = T.cast(mixed, f"uint64{suffix}") * _unsigned(factor, lanes, "uint64")
        value = bind(T.cast(wide & _unsigned(0xFFFFFFFF, lanes, "uint64"), f"uint32{suffix}"))
    return bind(value ^ (value >> _unsigned(16, lanes)))


def dropout(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``x / (1 - p)`` where the hash of the place is large enough, else 0."""
    lanes, probability = vector_lanes(target), float(parameters["probability"])
    salt = int(parameters["salt"]) * 0x9E3779B9 % 2**32
    threshold = min(round(probability * 2**32), 2**32 - 1)
    kept = 1.0 / (1.0 - probability)

    def body(x: Buffer, seed: Buffer, y: Buffer) -> None:
        rows, columns = shape(x)
        key = lowbias32(T.cast(seed[0], "uint32") ^ _unsigned(salt, 1), 1)

        def row(t: Expr) -> None:
            def mask(k: Expr, n: int) -> None:
                place = T.cast(t * columns + k, "uint32")
                if n > 1:
                    place = splat(place, n) + constants(list(range(n)), "uint32")
                large = lowbias32(place ^ splat(key, n), n) >= _unsigned(threshold, n)
                value = load(x, t, k, lanes=n) * splat(kept, n)
                store(y, T.Select(large, value, splat(0.0, n)), t, k)

            over(columns, lanes, mask)

        over_rows(rows, columns, row)

    return build(function, body)
