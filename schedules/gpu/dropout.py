"""Dropout: the mask is a hash of the place."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, shape
from .elements import constant, has_static_columns, load, over_rows, store
from .kernel import Gpu, build
from .vectors import four, lane


def _unsigned(number: int, dtype: str = "uint32") -> Expr:
    return tirx.const(number, dtype)


def lowbias32(value: Expr) -> Expr:
    """Return `lowbias32` of a scalar; the meaning is in ``models/kernels/dropout.py``."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = bind(value ^ (value >> _unsigned(shift)))
        # TVM takes a product of uint32 for one that never overflows; compilers narrow this one.
        wide = T.Cast("uint64", mixed) * _unsigned(factor, "uint64")
        value = bind(T.Cast("uint32", wide & _unsigned(0xFFFFFFFF, "uint64")))
    return bind(value ^ (value >> _unsigned(16)))


def dropout(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out ``x / (1 - p)`` where the hash of the place is large enough, else 0."""
    gpu, probability = Gpu(target), float(parameters["probability"])
    salt = int(parameters["salt"]) * 0x9E3779B9 % 2**32
    threshold = min(round(probability * 2**32), 2**32 - 1)
    kept = 1.0 / (1.0 - probability)

    def body(x: Buffer, seed: Buffer, y: Buffer) -> None:
        rows, columns = shape(x)

        def mask(t: Expr, k: Expr, lanes: int) -> None:
            key = lowbias32(T.Cast("uint32", seed[0]) ^ _unsigned(salt))
            place = bind(t * columns + k)

            value = bind(load(x, t, k, lanes=lanes) * constant(kept, lanes))

            def masked(index: int) -> Expr:
                element = value if lanes == 1 else lane(value, index)
                large = lowbias32(T.Cast("uint32", place + index) ^ key) >= _unsigned(threshold)
                return bind(T.Select(large, element, constant(0.0, 1)))

            parts = [masked(index) for index in range(lanes)]
            store(y, parts[0] if lanes == 1 else four(parts), t, k)

        over_rows(gpu, rows, columns, mask)

    return build(function, body) if has_static_columns(function, 0) else None
