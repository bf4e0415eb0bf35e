"""Where the time of a bundle's training step or token goes, kernel by kernel.

Run as ``python bench/profile.py BUNDLE [--work train|decode|prefill] [--rounds 3]``. On a device
its recorded launches are timed by its own clock; on the processor, and for prompts, the calls of
the virtual machine by ours. What lies between them is the rest of `bench/headline.py`'s time.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

from bitfabric.runtime.engine import TrainingEngine
from bitfabric.runtime.ffi import tvm_ffi
from bitfabric.runtime.inference import InferenceEngine
from headline import Inference, Training


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
    """The launches of a recorded step, by the device's own clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def add(self, times: list[tuple[str, float]]) -> None:
        """Add the launches of one call."""
        for name, seconds in times:
            self.seconds[name] += seconds
            self.calls[name] += 1


def table(watch: Stopwatch | DeviceClock, rounds: int) -> None:
    """Print milliseconds and calls of a round, the largest first."""
    total = sum(watch.seconds.values())
    print(f"{'':40}{'ms':>9}{'share':>8}{'calls':>8}{'us/call':>9}")
    for name in sorted(watch.seconds, key=lambda n: -watch.seconds[n])[:40]:
        seconds, calls = watch.seconds[name] / rounds, watch.calls[name] / rounds
        share = watch.seconds[name] / total
        each = 1e6 * seconds / calls
        print(f"{name[:39]:40}{1e3 * seconds:9.3f}{share:8.1%}{calls:8.0f}{each:9.1f}")
    print(f"{'all':40}{1e3 * total / rounds:9.3f}")


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
        table(clock, arguments.rounds)
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
