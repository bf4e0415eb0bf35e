"""Small kernels with known answers, to tell whether a device and its driver compute rightly.

They try what our kernels live on: 32-bit floats with exp and rsqrt, sums over a work-group through
local memory and barriers, 8-bit dot products, and where the device has them 16-bit floats and sums
over subgroups. The answers are numpy's, in float64 or in integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .memory_space import DeviceMemory

THREADS, GROUPS = 64, 48
"""Threads of a work-group, and work-groups, of each kernel."""
COUNT = THREADS * GROUPS
Kernel = Callable[..., Any]
"""``kernel(x, y, out)`` over tensors of COUNT elements of a device."""


@dataclass(frozen=True)
class Check:
    """The outcome of one kernel.

    Attributes
    ----------
    name : str
        What it tries.
    error : float
        The largest difference from the right answer, relative to one plus its size; inf where the
        kernel gave no number.
    tolerance : float
        What is allowed.
    """

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class _Case:
    """One kernel: `answer(x, y)` is what it gives of two arrays of COUNT elements."""

    name: str
    kernel: str
    x: np.ndarray
    y: np.ndarray
    answer: Callable[[np.ndarray, np.ndarray], np.ndarray]
    tolerance: float


def check_device(memory: DeviceMemory, kernels: Mapping[str, Kernel]) -> list[Check]:
    """Run the kernels that there are on a device and compare.

    Parameters
    ----------
    memory : DeviceMemory
        Of the device.
    kernels : mapping
        By name, of ``floats``, ``sums``, ``dots``, ``halves`` and ``subgroups``. Of x and y float32
        the first gives ``fma(x, y, exp(-x²)) / sqrt(1 + y²)``, the second and the last the sum of
        x·y over the work-group; of x and y float16 ``halves`` gives x·y + x; of words of four
        signed bytes ``dots`` gives their product plus the element's index.

    Raises
    ------
    FabricError
        If the device has no memory left.
    RuntimeError
        If the driver does not compile or run a kernel; its message says which and why.
    """
    return [_run(memory, case, kernels[case.kernel]) for case in _cases() if case.kernel in kernels]


def _cases() -> list[_Case]:
    random = np.random.default_rng(0)
    x, y = random.uniform(-2, 2, (2, COUNT)).astype(np.float32)
    # The bytes of a word count from the lowest, as on every machine that this runs on.
    words = random.integers(-(2**31), 2**31, (2, COUNT)).astype(np.int32)
    low = [values.astype(np.float16) for values in (x, y)]
    return [
        _Case("32-bit floats", "floats", x, y, _floats, 1e-5),
        _Case("sums over a work-group", "sums", x, y, _sums, 1e-5),
        _Case("8-bit dot products", "dots", words[0], words[1], _dots, 0.0),
        _Case("16-bit floats", "halves", low[0], low[1], _halves, 2e-3),
        _Case("sums over subgroups", "subgroups", x, y, _sums, 1e-5),
    ]


def _floats(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return (x * y + np.exp(-(x**2))) / np.sqrt(1 + y**2)


def _sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    products = x.astype(np.float64) * y.astype(np.float64)
    return products.reshape(GROUPS, THREADS).sum(1).repeat(THREADS)


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    pairs = x.view(np.int8).astype(np.int64) * y.view(np.int8).astype(np.int64)
    return pairs.reshape(COUNT, 4).sum(1) + np.arange(COUNT)


def _halves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return x * y + x


def _run(memory: DeviceMemory, case: _Case, kernel: Kernel) -> Check:
    x, y = memory.constant(case.x), memory.constant(case.y)
    out = memory.constant(np.zeros_like(case.x))
    kernel(x, y, out)
    found, right = memory.read(out).astype(np.float64), case.answer(case.x, case.y)
    error = np.max(np.abs(found - right) / (1 + np.abs(right)))
    return Check(case.name, float(error) if np.isfinite(error) else float("inf"), case.tolerance)
