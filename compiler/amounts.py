"""What a kernel reads, writes and multiplies at least: its floor on any machine, by its rates."""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import tirx

from ..schedules import KERNEL, PARAMETERS
from ..schedules.ternary import Packing, Segment, segments
from ..schedules.tir import static

Amounts = dict[str, float]
"""``bytes`` of all arguments, each moved once; ``int8`` and ``float`` operations, of products."""


def amounts_of(function: tirx.PrimFunc) -> Amounts | None:
    """Return the amounts of an unscheduled kernel; None where an extent is variable.

    A product of matrices is two operations for each term, as everywhere. Attention sees half of
    the positions. A table that is only looked up in counts as if it were read.
    """
    shapes = [[static(extent) for extent in p.shape] for p in function.params]
    if any(extent is None for shape in shapes for extent in shape):
        return None
    attributes = function.attrs or {}
    kernel = str(attributes[KERNEL]) if KERNEL in attributes else ""
    parameters = dict(attributes[PARAMETERS].items()) if PARAMETERS in attributes else {}
    widths = [tvm.DataType(str(p.dtype)).bits // 8 for p in function.params]
    found = {"bytes": 0.0, "int8": 0.0, "float": 0.0}
    if kernel == "embed":
        # Rows that are looked up, not the table.
        shapes, widths = shapes[2:], widths[2:]
    for shape, width in zip(shapes, widths, strict=True):
        found["bytes"] += width * math.prod(shape)  # type: ignore[arg-type]
    return found | _products(kernel, parameters, function)


def _products(kernel: str, parameters: dict[str, Any], function: tirx.PrimFunc) -> Amounts:
    """Return the operations of a kernel's matrix products."""
    shapes = [[int(extent) for extent in p.shape] for p in function.params]
    if kernel in ("bitlinear", "fused_bitlinear"):
        tokens, packed = shapes[0][0], shapes[1]
        main, thin = _linear(tokens, packed, parameters, _rank(shapes))
        return {"int8": main, "float": thin}
    if kernel == "bitlinear_vjp":
        tokens, packed = shapes[0][0], shapes[2]
        main, thin = _linear(tokens, packed, parameters, _rank(shapes))
        # Of the adapters: their output's adjoint, their input anew, both factors', and the input's.
        return {"float": main + 2.5 * thin}
    if kernel in ("head_loss", "head_loss_forward", "logits"):
        (tokens, columns), rows = shapes[0], shapes[1][0]
        return {"float": (4.0 if kernel == "head_loss" else 2.0) * tokens * columns * rows}
    if kernel in ("attention", "attention_vjp"):
        batch, context = shapes[1 if kernel == "attention" else 2]
        width = int(parameters["heads"]) * int(parameters["head_dim"])
        return {"float": (2.0 if kernel == "attention" else 5.0) * batch * context**2 * width}
    return {}


def _rank(shapes: list[list[int]]) -> int:
    """Return the rank of the adapters, whose first factor alone has three axes but the matrix."""
    return next((shape[1] for shape in shapes[3:] if len(shape) == 3), 0)


def _linear(
    tokens: int, packed: list[int], parameters: dict[str, Any], rank: int
) -> tuple[float, float]:
    """Return the operations of a group of projections, and those of its adapters' two products."""
    parts: list[Segment] = segments(parameters)
    columns = packed[1] * Packing.of(parameters).columns
    adapted = [part for part in parts if part.adapter is not None]
    rows = sum(part.end - part.begin for part in adapted)
    thin = 2.0 * tokens * rank * (len(adapted) * columns + rows)
    return 2.0 * tokens * columns * parts[-1].end, thin
