"""The machine's own rates: ``python -m bitfabric.cli.bench_calibration BUNDLE``.

Of a processor, four kernels of the compiler are timed. Of a device, a copy within its memory, and
the product of two 16-bit matrices by PyTorch, where that is installed and reaches the device. As
any side of `fabric bench`, it prints a JSON object, and another for each line that it reads.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ..runtime.bundle import Bundle, open_bundle
from ..runtime.device import Machine, chosen_device
from ..runtime.measure import answer
from ..targets.ffi import tvm_ffi

SECONDS = 0.15
"""For each probe of a round."""
COPIED = 256 << 20
"""Bytes of a copy, more than any cache holds."""
MATRIX = 8192
"""Rows and columns of the matrices that are multiplied."""
Rates = dict[str, float]


def processor(target: str) -> Callable[[], Rates]:
    """Return what measures the processor by a target's instructions."""
    # All of TVM, before the runtime loads a part of it.
    os.environ["TVM_USE_RUNTIME_LIB"] = "0"
    from ..compiler.calibration import Calibrator
    from ..runtime.library import processors
    from ..targets import get_target

    threads = int(os.environ.get("TVM_NUM_THREADS", processors()))
    calibrator = Calibrator(get_target(target), threads)

    def measure() -> Rates:
        speed = calibrator.measure(SECONDS)
        return {
            "float32_gflops": speed.float32 / 1e9,
            "int8_gops": speed.int8 / 1e9,
            "read_gb_s": speed.read / 1e9,
            "ternary_gb_s": speed.ternary / 1e9,
        }

    return measure


def device(bundle: Bundle) -> Callable[[], Rates]:
    """Return what measures the device that a bundle runs on."""
    memory = Machine(bundle).memory
    size = min(COPIED, bundle.manifest["target"]["limits"]["max_buffer"]) // 4
    source, sink = (memory.zeros((size,)).tensor for _ in range(2))
    copy = memory.guarded(tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo"))

    def copies(count: int) -> None:
        for _ in range(count):
            copy(source, sink)
        memory.wait()

    multiply = products(chosen_device(bundle))

    def measure() -> Rates:
        # A copy reads and writes.
        found = {"copy_gb_s": 2 * 4 * size * rate(copies) / 1e9}
        if multiply is not None:
            found["matrix_tflops"] = 2.0 * MATRIX**3 * rate(multiply) / 1e12
        return found

    return measure


def products(index: int) -> Callable[[int], None] | None:
    """Return what multiplies bfloat16 matrices so often; None where PyTorch has no such device."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    where = torch.device("cuda", index)
    a, b = (torch.randn(MATRIX, MATRIX, device=where, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def multiply(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)
        torch.cuda.synchronize(where)

    return multiply


def rate(work: Callable[[int], None]) -> float:
    """Return how often a second something is done, given what does it so many times and waits."""
    work(1)
    count, seconds = 1, 0.0
    while seconds < SECONDS:
        count *= 2
        begin = time.perf_counter()
        work(count)
        seconds = time.perf_counter() - begin
    return count / seconds


def main() -> None:
    """Measure until there are no more lines."""
    bundle = open_bundle(sys.argv[1])
    target = bundle.manifest["target"]
    measure = processor(target["name"]) if target["device"] == "cpu" else device(bundle)

    def calibrated() -> dict[str, Any]:
        return {"rates": measure()}

    answer(calibrated)


if __name__ == "__main__":
    main()
