"""Arguments for a kernel that is measured: random, but such as a model would pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Fill = list[Any]
"""How an argument is filled: ``[kind, *numbers]``, see :func:`filled`."""
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


def filled(argument: Argument, rng: np.random.Generator) -> np.ndarray:
    """Return an argument's values, by the kind of its fill.

    ``normal`` and ``uniform`` are random floats, ``integers`` random whole numbers below a bound,
    ``codes`` words of sixteen ternary codes, ``arange`` counts up, ``values`` are these, repeated.

    Raises
    ------
    ValueError
        For a kind that there is not.
    """
    shape, dtype = tuple(argument["shape"]), argument["dtype"]
    kind, *numbers = argument["fill"]
    if kind == "normal":
        return (rng.standard_normal(shape, np.float32) * np.float32(numbers[0])).astype(dtype)
    if kind == "uniform":
        low, high = numbers
        return rng.uniform(low, high, shape).astype(dtype)
    if kind == "integers":
        low, high = numbers
        return rng.integers(low, high, shape).astype(dtype)
    if kind == "codes":
        words = np.zeros(shape, np.uint32)
        for place in range(16):
            words |= rng.integers(0, 3, shape).astype(np.uint32) << np.uint32(2 * place)
        return words.view(np.int32)
    if kind == "arange":
        count = int(np.prod(shape))
        return np.arange(numbers[0], numbers[0] + count).reshape(shape).astype(dtype)
    if kind == "values":
        return np.resize(np.array(numbers), shape).astype(dtype)
    raise ValueError(f"there is no fill {kind!r}")
