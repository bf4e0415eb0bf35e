"""The process in which candidates are built and run: it may crash or hang, the tuner does not.

It reads requests, a JSON object a line, and answers each with one. A device is opened once, for
all candidates. Every candidate is run on the same arguments as the default schedule, whose results
it must reproduce, and the two are timed in turns, so that a machine that is busy for a while slows
both.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import tvm

from ...targets import Target
from ...targets.target import Limits, MatrixUnit
from ..device_code import NAME as DEVICE_CODE
from ..host_code import NAME as HOST_CODE
from ..pipeline import tvm_target
from .arguments import Argument, filled

TYPICAL_TOLERANCE, LARGEST_TOLERANCE = 1e-3, 2e-2
"""How far a candidate's results may be off: the root of the mean square of the differences by that
of the default's results, and the largest difference by the largest result. Another order of a sum
may round a quantised activation the other way, which is a step of 1/127 of one term."""
COLD_BYTES = 48 << 20
"""Arguments are as many sets as fill this, used in turn: a model's weights come from memory."""
MOST_SETS = 12
LEAST_TURNS, MOST_TURNS = 5, 400
Open = Callable[[str], Any]
"""Loads what a kind of device needs and returns ``tvm.runtime.Device``."""


def target_from_json(found: dict[str, Any]) -> Target:
    """Return the target that ``dataclasses.asdict`` described."""
    return Target(
        **{
            **found,
            "features": frozenset(found["features"]),
            "limits": Limits(**found["limits"]) if found["limits"] else None,
            "matrices": tuple(MatrixUnit(**unit) for unit in found["matrices"]),
        }
    )


def serve(requests: IO[str], answers: IO[str], open_device: Open) -> None:
    """Answer requests until there are no more.

    Parameters
    ----------
    requests, answers : text streams
        Lines of JSON.
    open_device : callable
        Opens a device by its kind.
    """
    bench: Bench | None = None
    for line in requests:
        request = json.loads(line)
        # Whoever asked may be gone by the time a candidate hangs; then nobody else ends it.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 2 * request["limit"])
        try:
            if request["do"] == "open":
                bench = Bench(target_from_json(request["target"]), open_device)
                answer: dict[str, Any] = {}
            elif bench is None:
                raise ValueError("no device is open")
            elif request["do"] == "kernel":
                answer = bench.take(request["function"], request["arguments"])
            else:
                answer = bench.compare(request["function"], request["seconds"], request["repeats"])
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            answer = {"failed": "build", "why": lines[-1][:200]}
        print(json.dumps(answer), file=answers, flush=True)


class Bench:
    """A device, the default schedule of one kernel, and its results.

    Parameters
    ----------
    target : Target
        What candidates are built for.
    open_device : callable
        Opens the target's device.
    """

    def __init__(self, target: Target, open_device: Open) -> None:
        self.target, self.device = target, open_device(target.device)
        self._default: Callable[..., None] | None = None
        self._expected: list[np.ndarray] = []
        self._arrays: list[np.ndarray] = []
        self._sets: list[list[Any]] = []

    def _built(self, function: str) -> Callable[..., None]:
        module = tvm.IRModule(
            {"main": tvm.ir.load_json(function).with_attr("global_symbol", "main")}
        )
        pipeline = HOST_CODE if self.target.family == "cpu" else DEVICE_CODE
        return tvm.compile(module, target=tvm_target(self.target), tir_pipeline=pipeline)["main"]

    def _tensors(self) -> list[Any]:
        return [tvm.runtime.tensor(array, self.device) for array in self._arrays]

    def take(self, function: str, arguments: list[Argument]) -> dict[str, Any]:
        """Build and run the default schedule, and keep what it computes; gives its time."""
        rng = np.random.default_rng(0)
        self._arrays = [filled(argument, rng) for argument in arguments]
        size = sum(array.nbytes for array in self._arrays)
        self._sets = []
        self._default = self._built(function)
        self._expected = self._results(self._default)
        count = min(max(COLD_BYTES // max(size, 1), 1), MOST_SETS)
        self._sets = [self._tensors() for _ in range(count)]
        return {"seconds": statistics.median(self._times([self._default], 0.1)[0])}

    def compare(self, function: str, seconds: float, repeats: int = 1) -> dict[str, Any]:
        """Build a candidate, check its results, and time it against the default for a while.

        Where memory lies makes a difference of some percent, which turns do not even out: of
        several `repeats`, each with arguments that lie elsewhere, the worst counts.
        """
        if self._default is None:
            raise ValueError("no kernel was given")
        kernel = self._built(function)
        difference = _difference(self._results(kernel), self._expected)
        if difference:
            return {"failed": "wrong numbers", "why": difference}
        found = []
        for repeat in range(repeats):
            if repeat:
                self._move()
            found.append(self._compared([self._default, kernel], seconds))
        return max(found, key=lambda each: each["high"])

    def _move(self) -> None:
        """Give the arguments other places in memory: new ones, before the old ones are freed."""
        old, self._sets = self._sets, []
        self._sets = [self._tensors() for _ in old]

    def _compared(self, kernels: list[Callable[..., None]], seconds: float) -> dict[str, Any]:
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

    def _results(self, kernel: Callable[..., None]) -> list[np.ndarray]:
        tensors = self._tensors()
        kernel(*tensors)
        self._wait()
        return [tensor.numpy() for tensor in tensors]

    def _wait(self) -> None:
        if self.target.device != "cpu":
            self.device.sync()

    def _times(self, kernels: list[Callable[..., None]], seconds: float) -> list[list[float]]:
        """Return the times of some kernels, called in turns, each on the same sets in order."""
        times: list[list[float]] = [[] for _ in kernels]
        end, turn = time.perf_counter() + seconds, 0
        while turn < LEAST_TURNS or (time.perf_counter() < end and turn < MOST_TURNS):
            for index in range(len(kernels)):
                # The first of a turn finds the caches as the last one left them: take turns there.
                which = (index + turn) % len(kernels)
                arguments = self._sets[(len(kernels) * turn + index) % len(self._sets)]
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


def run(open_device: Open) -> None:
    """Serve standard input and output; what anything else prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers, open_device)
