"""Kernels by themselves: a candidate's results and times beside those of the default schedule.

Every candidate is run on the same arguments as the default, whose results it must reproduce, and
the two are timed in turns, so that a machine that is busy for a while slows both. The runtime alone
is needed: kernels are measured so on this machine, and on devices elsewhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..targets.ffi import tvm_ffi
from .backends import expect_any_module, load_backend
from .device import named_devices
from .library import load_runtime
from .memory_space import Block, DeviceMemory, HostMemory, MemorySpace

TYPICAL_TOLERANCE, LARGEST_TOLERANCE = 1e-3, 2e-2
"""How far a candidate's results may be off: the root of the mean square of the differences by that
of the default's results, and the largest difference by the largest result. Another order of a sum
may round a quantised activation the other way, which is a step of 1/127 of one term."""
COLD_BYTES = 48 << 20
"""Arguments are as many sets as fill this, used in turn: a model's weights come from memory."""
MOST_SETS = 12
LEAST_TURNS, MOST_TURNS = 5, 400
Argument = Mapping[str, Any]
"""``dtype``, ``shape`` and ``fill``, which is ``[kind, *numbers]``, see :func:`filled`."""
Kernel = Callable[..., Any]


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


class KernelBench:
    """A device, the default schedule of one kernel, and its results.

    Parameters
    ----------
    kind : str
        The kind of device, the one that ``FABRIC_DEVICE`` names or the first.

    Raises
    ------
    FabricError
        If there is no such device.
    """

    def __init__(self, kind: str) -> None:
        load_runtime()
        self._memory: MemorySpace = HostMemory()
        self._device: Any = None
        if kind != "cpu":
            load_backend(kind)
            # Candidates come while the default's arguments lie on the device.
            expect_any_module(kind)
            index = int(named_devices(kind)[0]["index"])
            self._memory, self._device = DeviceMemory(kind, index), tvm_ffi.Device(kind, index)
        self._sync = tvm_ffi.get_global_func("runtime.Device_StreamSync")
        self._default: Kernel | None = None
        self._expected: list[np.ndarray] = []
        self._arrays: list[np.ndarray] = []
        self._sets: list[list[Block]] = []

    def take(self, kernel: Kernel, arguments: Sequence[Argument]) -> dict[str, Any]:
        """Run a default schedule, and keep what it computes; gives its ``seconds``."""
        rng = np.random.default_rng(0)
        self._arrays = [filled(argument, rng) for argument in arguments]
        size = sum(array.nbytes for array in self._arrays)
        self._sets = []
        self._default = kernel
        self._expected = self._results(kernel)
        count = min(max(COLD_BYTES // max(size, 1), 1), MOST_SETS)
        self._sets = [self._blocks() for _ in range(count)]
        return {"seconds": statistics.median(self._times([kernel], 0.1)[0])}

    def compare(self, kernel: Kernel, seconds: float, repeats: int = 1) -> dict[str, Any]:
        """Check a candidate's results, and time it against the default for a while.

        Where memory lies makes a difference of some percent, which turns do not even out: of
        several `repeats`, each with arguments that lie elsewhere, the worst counts.

        Returns
        -------
        dict
            ``seconds``, ``default_seconds``, ``ratio``, ``low`` and ``high``; or ``failed`` and
            ``why``.
        """
        if self._default is None:
            raise ValueError("no kernel was given")
        difference = _difference(self._results(kernel), self._expected)
        if difference:
            return {"failed": "wrong numbers", "why": difference}
        found = []
        for repeat in range(repeats):
            if repeat:
                self._move()
            found.append(self._compared([self._default, kernel], seconds))
        return max(found, key=lambda each: each["high"])

    def _blocks(self) -> list[Block]:
        """Return the arguments in memory of their own."""
        blocks = []
        for array in self._arrays:
            block = self._memory.zeros(array.shape, str(array.dtype))
            block.write(array)
            blocks.append(block)
        return blocks

    def _move(self) -> None:
        """Give the arguments other places in memory: new ones, before the old ones are freed."""
        old, self._sets = self._sets, []
        self._sets = [self._blocks() for _ in old]

    def _compared(self, kernels: list[Kernel], seconds: float) -> dict[str, Any]:
        """Time the default and a candidate in turns."""
        default, candidate = self._times(kernels, seconds)
        ratios = sorted(b / a for a, b in zip(default, candidate, strict=True))
        # The median of n values lies between these two with 95 %.
        n, margin = len(ratios), round(0.98 * len(ratios) ** 0.5)
        return {
            "seconds": statistics.median(candidate),
            "default_seconds": statistics.median(default),
            "ratio": statistics.median(ratios),
            "low": ratios[max(n // 2 - margin, 0)],
            "high": ratios[min(n // 2 + margin, n - 1)],
        }

    def _results(self, kernel: Kernel) -> list[np.ndarray]:
        blocks = self._blocks()
        kernel(*(block.tensor for block in blocks))
        self._wait()
        return [np.array(block.read()) for block in blocks]

    def _wait(self) -> None:
        if self._device is not None:
            self._sync(self._device, 0)

    def _times(self, kernels: list[Kernel], seconds: float) -> list[list[float]]:
        """Return the times of some kernels, called in turns, each on the same sets in order."""
        times: list[list[float]] = [[] for _ in kernels]
        sets = [[block.tensor for block in blocks] for blocks in self._sets]
        end, turn = time.perf_counter() + seconds, 0
        while turn < LEAST_TURNS or (time.perf_counter() < end and turn < MOST_TURNS):
            for index in range(len(kernels)):
                # The first of a turn finds the caches as the last one left them: take turns there.
                which = (index + turn) % len(kernels)
                arguments = sets[(len(kernels) * turn + index) % len(sets)]
                start = time.perf_counter()
                kernels[which](*arguments)
                self._wait()
                times[which].append(time.perf_counter() - start)
            turn += 1
        return times


def _difference(results: list[np.ndarray], expected: list[np.ndarray]) -> str:
    """Say which result is too far from the expected one; empty where all are near."""
    for index, (found, wanted) in enumerate(zip(results, expected, strict=True)):
        if found.dtype.kind != "f":
            if not np.array_equal(found, wanted):
                return f"argument {index} differs"
            continue
        a, b = found.astype("float64"), wanted.astype("float64")
        known = np.isfinite(b)
        if not np.array_equal(known, np.isfinite(a)):
            return f"argument {index} is not finite in other places"
        off, size = np.abs(a - b)[known], np.abs(b)[known]
        if not off.size or not off.any():
            continue
        typical = float(np.sqrt((off**2).mean() / max((size**2).mean(), 1e-60)))
        largest = float(off.max() / max(size.max(), 1e-30))
        if typical > TYPICAL_TOLERANCE or largest > LARGEST_TOLERANCE:
            return f"argument {index} is off by {typical:.2g} typically, by {largest:.2g} at most"
    return ""
