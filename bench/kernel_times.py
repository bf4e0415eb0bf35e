"""Where the time of a bundle's training step or token goes, kernel by kernel.

Run as ``python bench/kernel_times.py BUNDLE [--work train|decode|prefill] [--rounds 3]``. On a
device its recorded launches are timed by its own clock; on the processor, and for prompts, the
calls of the virtual machine by ours. What lies between them is the rest of `fabric bench`'s time.
Where the backend tells how much memory a launch was given, the time to copy as much, at the rate of
a copy in the same run, stands beside it as its floor: of a table that is only looked up in, or of
memory that the pool gave larger than asked for, it is too high.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

from bitfabric.runtime.engine import TrainingEngine
from bitfabric.runtime.ffi import tvm_ffi
from bitfabric.runtime.inference import InferenceEngine
from bitfabric.runtime.measure import Inference, Training
from bitfabric.runtime.memory_space import DeviceMemory

COPIED = 64 << 20
"""Numbers of the copy that the floors are measured by, 256 MiB."""
COPIES = 5


class Stopwatch:
    """An instrument of TVM's virtual machine: adds up the time of each function that it calls."""

    def __init__(self, engine: TrainingEngine | InferenceEngine) -> None:
        self._machine = engine._machine
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._begin = 0.0
        self._machine["set_instrument"](tvm_ffi.convert(self._around))

    def _around(self, _function: Any, name: str, before: bool, *_: Any) -> int:
        now = time.perf_counter()
        if before:
            self._begin = now
        else:
            self.seconds[name] += now - self._begin
            self.calls[name] += 1
        return 0


class DeviceClock:
    """The launches of a recorded step, by the device's own clock, and the bytes they were given."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)

    def add(self, times: list[tuple[str, float, int]]) -> None:
        """Add the launches of one call."""
        for name, seconds, size in times:
            self.seconds[name] += seconds
            self.calls[name] += 1
            self.bytes[name] += size


def copy_rate(memory: DeviceMemory) -> float:
    """Return the bytes a second that the device reads and writes where it copies."""
    source, goal = (memory.allocate((COPIED,), "float32") for _ in range(2))
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
    best = 0.0
    for _ in range(COPIES):
        memory.wait()
        begin = time.perf_counter()
        for _ in range(COPIES):
            copy(source, goal)
        memory.wait()
        best = max(best, COPIES * 2 * 4 * COPIED / (time.perf_counter() - begin))
    return best


def table(watch: Stopwatch | DeviceClock, rounds: int, rate: float = 0.0) -> None:
    """Print milliseconds and calls of a round, the largest first, and floors at a copy's rate."""
    total = sum(watch.seconds.values())
    floor = f"{'floor us':>10}" if rate else ""
    print(f"{'':40}{'ms':>9}{'share':>8}{'calls':>8}{'us/call':>9}{floor}")
    for name in sorted(watch.seconds, key=lambda n: -watch.seconds[n])[:40]:
        seconds, calls = watch.seconds[name] / rounds, watch.calls[name] / rounds
        share = watch.seconds[name] / total
        each = 1e6 * seconds / calls
        least = ""
        if rate and isinstance(watch, DeviceClock):
            least = f"{1e6 * watch.bytes[name] / watch.calls[name] / rate:10.1f}"
        print(f"{name[:39]:40}{1e3 * seconds:9.3f}{share:8.1%}{calls:8.0f}{each:9.1f}{least}")
    print(f"{'all':40}{1e3 * total / rounds:9.3f}{sum(watch.calls.values()) / rounds:16.0f}")


def main() -> None:
    """Run the work and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--work", choices=("train", "decode", "prefill"), default="train")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    training = arguments.work == "train"
    running = (Training if training else Inference)(arguments.bundle)
    if arguments.work == "decode":
        running.prefill()
    bound = running.engine._train_step if training else running.engine._decode
    if arguments.work != "prefill" and hasattr(bound, "times"):
        clock = DeviceClock()
        bound.times()
        for _ in range(arguments.rounds):
            clock.add(bound.times())
        rate = copy_rate(running.engine._machine.memory) if any(clock.bytes.values()) else 0.0
        table(clock, arguments.rounds, rate)
        if rate:
            print(f"a copy reads and writes {1e-12 * rate:.2f} TB/s")
        return
    once = {
        "train": lambda: running.step(),
        "prefill": lambda: running.prefill(),
        "decode": lambda: running.engine.decode(1),
    }[arguments.work]
    once()
    watch = Stopwatch(running.engine)
    for _ in range(arguments.rounds):
        once()
    table(watch, arguments.rounds)


if __name__ == "__main__":
    main()
