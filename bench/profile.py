"""Where the time of a bundle's training step or token goes, kernel by kernel.

Run as ``python bench/profile.py BUNDLE [--work train|decode|prefill] [--rounds 3]``. After each
kernel the device is waited for, so that launches that overlap in a real run do not here: read the
shares, and the sum with the real time of `bench/headline.py` beside it.
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
        self._machine.memory.wait()
        now = time.perf_counter()
        if before:
            self._begin = now
        else:
            self.seconds[name] += now - self._begin
            self.calls[name] += 1
        return 0

    def table(self, rounds: int) -> None:
        """Print milliseconds and calls of a round, the largest first."""
        total = sum(self.seconds.values())
        print(f"{'':40}{'ms':>9}{'share':>8}{'calls':>8}{'us/call':>9}")
        for name in sorted(self.seconds, key=lambda n: -self.seconds[n])[:30]:
            seconds, calls = self.seconds[name] / rounds, self.calls[name] / rounds
            share = self.seconds[name] / total
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
    running = (Training if arguments.work == "train" else Inference)(arguments.bundle)
    once = {
        "train": lambda: running.step(),
        "prefill": lambda: running.prefill(),
        "decode": lambda: running.engine.decode(1),
    }[arguments.work]
    if arguments.work == "decode":
        running.prefill()
    once()
    watch = Stopwatch(running.engine)
    for _ in range(arguments.rounds):
        once()
    watch.table(arguments.rounds)


if __name__ == "__main__":
    main()
