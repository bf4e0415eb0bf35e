"""What a launch costs: to ask for, to record, to replay, to run on the device, and to wait for.

Run as ``python bench/launches.py vulkan launches.so [--index 0]`` with what `launch_module.py`
wrote; TVM's compiler is not needed. The kernel adds one to 64 numbers, so all that is measured is
the way there and back, through compiled host code as a model's kernels go.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bitfabric.runtime.backends import devices
from bitfabric.targets import APIS
from bitfabric.targets.ffi import tvm_ffi

KERNEL, LANES, ROUNDS = "add_one", 64, 200
FEW, MANY, BUFFERS = 12, 256, 16
"""Launches that no backend hands over by itself, those of a recording, and the tensors on which
launches do not depend on each other."""


class Launches:
    """The kernel on tensors of a device.

    Parameters
    ----------
    kind : str
        Of the device; its backend is loaded.
    index : int
        The device.
    path : pathlib.Path
        What `launch_module.py` wrote for it.
    """

    def __init__(self, kind: str, index: int, path: Path) -> None:
        self.kernel = tvm_ffi.load_module(str(path))[KERNEL]
        self.device = tvm_ffi.Device(kind, index)
        self.recorder = tvm_ffi.get_global_func(f"bitfabric.{kind}.recorder")(index)
        self._wait = tvm_ffi.get_global_func("runtime.Device_StreamSync")
        self.tensors = [self._zeros() for _ in range(BUFFERS)]
        self.asked = [0] * BUFFERS

    def _zeros(self) -> Any:
        allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        tensor = allocate(tvm_ffi.Shape((LANES,)), tvm_ffi.dtype("float32"), self.device, None)
        zeros = np.zeros(LANES, "float32")
        pointer = ctypes.c_void_p(zeros.ctypes.data)
        tvm_ffi.get_global_func("runtime.TVMTensorCopyFromBytes")(tensor, pointer, zeros.nbytes)
        return tensor

    def launch(self, count: int, buffers: int = 1) -> None:
        """Launch so many times, on the first tensors in turn."""
        for i in range(count):
            self.kernel(self.tensors[i % buffers])

    def wait(self) -> None:
        """Wait for the device."""
        self._wait(self.device, 0)

    def recorded(self, buffers: int) -> Callable[[bool], str]:
        """Return what replays MANY launches, on the first tensors in turn."""
        return self.recorder(lambda: self.launch(MANY, buffers), lambda _: None)

    def sums(self) -> list[float]:
        """Return how often the kernel ran on each tensor."""
        copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")
        found = []
        for tensor in self.tensors:
            result = np.zeros(LANES, "float32")
            copy(tensor, ctypes.c_void_p(result.ctypes.data), result.nbytes)
            assert (result == result[0]).all(), "a launch was lost"
            found.append(float(result[0]))
        return found


def microseconds(work: Callable[[], Any], count: int, before: Callable[[], Any]) -> float:
    """Return the median time of one of `count` parts of a work."""
    times = []
    for _ in range(ROUNDS):
        before()
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) / count * 1e6)
    return median(times)


def measured(here: Launches) -> dict[str, float]:
    """Return microseconds a launch, and check that none was lost."""

    def waited(work: Callable[[], Any]) -> Callable[[], None]:
        def both() -> None:
            work()
            here.wait()

        return both

    waited(lambda: here.launch(MANY))()
    times = {
        "asked for": microseconds(lambda: here.launch(FEW), FEW, here.wait),
        "run, in a row": microseconds(waited(lambda: here.launch(MANY)), MANY, here.wait),
        "alone, and waited for": microseconds(waited(lambda: here.launch(1)), 1, here.wait),
    }
    begin = time.perf_counter()
    chain, apart = here.recorded(1), here.recorded(BUFFERS)
    times["recorded, once"] = (time.perf_counter() - begin) / (2 * MANY) * 1e6
    for name, replay in (("each after the last", chain), ("side by side", apart)):
        here.wait()
        handed = microseconds(lambda r=replay: r(False), MANY, here.wait)
        times[f"replay handed over, {name}"] = handed
        run = microseconds(waited(lambda r=replay: r(False)), MANY, here.wait)
        times[f"replayed, {name}"] = run
    times["executed, by the device's clock"] = median(t for _, t in json.loads(chain(True))) / 1e3
    replays = 2 * ROUNDS
    first = MANY + ROUNDS * (FEW + MANY + 1) + MANY * (replays + 2)
    each = MANY // BUFFERS * (replays + 1)
    assert here.sums() == [first + each] + [each] * (BUFFERS - 1), "a launch was lost"
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(APIS))
    parser.add_argument("path", type=Path)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    description = devices(arguments.kind)[arguments.index]
    times = measured(Launches(arguments.kind, arguments.index, arguments.path))
    assert "tvm" not in sys.modules, "TVM's compiler was loaded"
    if arguments.json:
        print(json.dumps({"device": description["name"], "kind": arguments.kind, "us": times}))
        return
    print(f"{description['name']}, {arguments.kind}; microseconds a launch")
    for name, value in times.items():
        print(f"{name:44}{value:8.2f}")


if __name__ == "__main__":
    main()
