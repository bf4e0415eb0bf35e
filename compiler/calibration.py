"""How fast this machine is: two short measurements that scale every prediction of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REPEATS = 7


@dataclass(frozen=True)
class Calibration:
    """What the machine does.

    Attributes
    ----------
    f32_flops : float
        Multiply and add operations a second of a float32 matrix product, all processors.
    read_bytes : float
        Bytes a second of a sum over an array far larger than the caches.
    """

    f32_flops: float
    read_bytes: float


def _best(work: Callable[[], object]) -> float:
    """Return the shortest of several runs, in seconds: what the machine does undisturbed."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def calibrate() -> Calibration:
    """Measure this machine in about a fifth of a second, through numpy's matrix product and sum."""
    size = 1024
    matrix = np.random.default_rng(0).standard_normal((size, size), np.float32)
    product = np.empty_like(matrix)
    flops = 2 * size**3 / _best(lambda: np.matmul(matrix, matrix, out=product))
    memory = np.ones(1 << 24, np.float32)
    return Calibration(flops, memory.nbytes / _best(memory.max))
