"""Arguments for a kernel that is measured: random, but such as a model would pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Fill = list[Any]
"""How an argument is filled: ``[kind, *numbers]``, see `runtime/kernel_bench.py`."""
Argument = dict[str, Any]
"""``dtype``, ``shape`` and ``fill`` of an argument."""


def arguments_of(kernel: str, shapes: Sequence[tuple[str, list[int]]]) -> list[Argument]:
    """Return the arguments of a kernel with these dtypes and extents, without their values."""
    return [
        {"dtype": dtype, "shape": shape, "fill": _fill(kernel, index, shapes)}
        for index, (dtype, shape) in enumerate(shapes)
    ]


def _fill(kernel: str, index: int, shapes: Sequence[tuple[str, list[int]]]) -> Fill:
    """Return how an argument is filled; the indices are those of `models/kernels`."""
    dtype, shape = shapes[index]
    if dtype == "float16":
        return ["normal", 0.05]
    if dtype == "int8":
        return ["integers", -127, 128]
    if dtype == "float32":
        if kernel == "adamw" and index == 2:
            return ["uniform", 1e-3, 1.0]
        if kernel == "adamw" and index == 4:
            return ["values", 1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0, 0.1, 1e-3]
        return ["normal", 1.0]
    if len(shape) == 3:
        return ["codes"]
    if kernel in ("head_loss", "head_loss_forward", "embed"):
        return ["integers", 0, shapes[1][1][0]]
    if kernel in ("append_kv", "cached_attention") and index == 2:
        return ["arange", 0]
    if kernel == "decode_attention" and index == 2:
        return ["arange", shapes[3][1][0] - 1]
    return ["arange", 0] if dtype == "int32" and shape == [1] else ["values", 0]
