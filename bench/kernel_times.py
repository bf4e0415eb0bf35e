"""Where the time of a training step or a token goes, kernel by kernel, and the least it takes.

Run as ``python bench/kernel_times.py BUNDLE [--work train|decode|prefill] [--rounds 3]``. On a
device its recorded launches are timed by its own clock; on the processor, and for prompts, the
calls of the virtual machine by ours. What lies between them is the rest of `fabric bench`'s time.

A kernel's floor is the longer of two times: to move its arguments once, at the rate of a copy (of
a read, on a processor) in the same run, and to do its products, at the rate that is measured where
a compiler or PyTorch is, or that ``--tflops`` gives. Both amounts are in the bundle's tuning.json.
What stays in a cache from one kernel to the next has no such floor, and is quicker. Where the
amounts are not known, the memory that the launch was given stands for them: of a table that is only
looked up in, or of memory that the pool gave larger than asked for, that is too much.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from bitfabric.runtime.bundle import Bundle, open_bundle
from bitfabric.runtime.engine import TrainingEngine
from bitfabric.runtime.inference import InferenceEngine
from bitfabric.runtime.measure import Inference, Training
from bitfabric.targets.ffi import tvm_ffi


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


class Floors:
    """The least times of a bundle's functions, by a machine's rates.

    Parameters
    ----------
    bundle : Bundle
        The bundle.
    bandwidth : float
        Bytes a second; 0 where it was not measured.
    rates : dict of str to float
        Operations a second, ``int8`` and ``float``; absent where they were not measured.
    """

    def __init__(self, bundle: Bundle, bandwidth: float, rates: dict[str, float]) -> None:
        path = bundle.path / "tuning.json"
        account = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.amounts: dict[str, dict[str, float] | None] = account.get("amounts", {})
        self.bandwidth, self.rates = bandwidth, rates

    def function_of(self, launch: str) -> str:
        """Return the function of the module that a launch is of."""
        if launch in self.amounts:
            return launch
        name = re.sub(r"_kernel(_\d+)?$", "", launch)
        return name if name in self.amounts else launch

    def amount(self, name: str, given: float) -> dict[str, float]:
        """Return what a call moves and multiplies; the bytes it was given where that is unknown."""
        return self.amounts.get(name) or {"bytes": given}

    def seconds(self, amounts: dict[str, float]) -> float | None:
        """Return the least time for some amounts; None where no rate is known."""
        times = [amounts["bytes"] / self.bandwidth] if self.bandwidth else []
        work = [amounts.get(kind, 0.0) / rate for kind, rate in self.rates.items() if rate]
        times += [sum(work)] if work else []
        return max(times, default=None)


@dataclass
class Row:
    """A function's calls in one round: seconds, calls, launches, and bytes that they were given."""

    seconds: float = 0.0
    calls: float = 0.0
    launches: float = 0.0
    given: float = 0.0


def rows_of(watch: Stopwatch | DeviceClock, floors: Floors, rounds: int) -> dict[str, Row]:
    """Return the functions of a round; as often called as its rarest launch."""
    rows: dict[str, Row] = defaultdict(Row)
    for name, seconds in watch.seconds.items():
        row, count = rows[floors.function_of(name)], watch.calls[name] / rounds
        row.seconds += seconds / rounds
        row.calls = min(row.calls or count, count)
        row.launches += count
        if isinstance(watch, DeviceClock):
            row.given += watch.bytes[name] / rounds
    return rows


def table(watch: Stopwatch | DeviceClock, rounds: int, floors: Floors) -> None:
    """Print a round's functions, the largest first, each with its floor, and the whole's."""
    rows = rows_of(watch, floors, rounds)
    total = sum(row.seconds for row in rows.values())
    heads = f"{'ms':>9}{'share':>8}{'calls':>7}{'launches':>9}{'us/call':>10}{'floor us':>10}"
    print(f"{'':30}{heads}{'of floor':>9}")
    least, done = 0.0, defaultdict(float)
    for name, row in sorted(rows.items(), key=lambda item: -item[1].seconds):
        each, calls = row.seconds / row.calls, row.calls
        amounts = floors.amount(name, row.given / calls)
        floor = floors.seconds(amounts)
        for kind, amount in amounts.items():
            done[kind] += amount * calls
        if floor is not None:
            least += floor * calls
        last = "" if floor is None else f"{1e6 * floor:10.1f}{floor / each:9.0%}"
        print(
            f"{name[:29]:30}{1e3 * row.seconds:9.3f}{row.seconds / total:8.1%}{calls:7.0f}"
            f"{row.launches:9.0f}{1e6 * each:10.1f}{last}"
        )
    launches = sum(row.launches for row in rows.values())
    print(f"{'all':30}{1e3 * total:9.3f}{'':15}{launches:9.0f}{'':10}{1e6 * least:10.1f}", end="")
    print(f"{least / total:9.0%}" if least else "")
    summary(total, done, floors)


def summary(seconds: float, done: dict[str, float], floors: Floors) -> None:
    """Print how much of the machine's rates a round uses."""
    if floors.bandwidth:
        moved = done["bytes"] / seconds
        print(
            f"memory: {1e-9 * moved:,.0f} GB/s of {1e-9 * floors.bandwidth:,.0f}, "
            f"{moved / floors.bandwidth:.0%}"
        )
    if floors.rates:
        busy = sum(done.get(kind, 0.0) / rate for kind, rate in floors.rates.items())
        rates = ", ".join(f"{1e-12 * r:.2f} T {kind}" for kind, r in floors.rates.items())
        print(f"products: {busy / seconds:.0%} of the time at {rates} operations a second (MFU)")


def rates_of(bundle: Bundle, tflops: float | None) -> tuple[float, dict[str, float]]:
    """Return the machine's bandwidth, and its rates of products as far as they can be measured.

    `fabric bench` measures them, in a process of its own.
    """
    command = [sys.executable, "-m", "bitfabric.cli.bench_calibration", str(bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    found = json.loads(done.stdout)["rates"] if done.returncode == 0 else {}
    bandwidth = 1e9 * (found.get("copy_gb_s") or found.get("read_gb_s") or 0.0)
    if "int8_gops" in found:
        return bandwidth, {
            "int8": 1e9 * found["int8_gops"],
            "float": 1e9 * found["float32_gflops"],
        }
    tflops = tflops or found.get("matrix_tflops")
    return bandwidth, dict.fromkeys(("int8", "float"), 1e12 * tflops) if tflops else {}


def main() -> None:
    """Run the work and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--work", choices=("train", "decode", "prefill"), default="train")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tflops", type=float, help="the device's products, 10^12 operations/s")
    arguments = parser.parse_args()
    training, bundle = arguments.work == "train", open_bundle(arguments.bundle)
    running = (Training if training else Inference)(bundle)
    if arguments.work == "decode":
        running.prefill()
    watch = watched(arguments.work, running, arguments.rounds)
    table(watch, arguments.rounds, Floors(bundle, *rates_of(bundle, arguments.tflops)))


def watched(work: str, running: Training | Inference, rounds: int) -> Stopwatch | DeviceClock:
    """Run some rounds under the device's clock where it has one, else under ours."""
    bound = running.engine._train_step if work == "train" else running.engine._decode
    if work != "prefill" and hasattr(bound, "times"):
        clock = DeviceClock()
        bound.times()
        for _ in range(rounds):
            clock.add(bound.times())
        return clock
    once = {
        "train": lambda: running.step(),
        "prefill": lambda: running.prefill(),
        "decode": lambda: running.engine.decode(1),
    }[work]
    once()
    watch = Stopwatch(running.engine)
    for _ in range(rounds):
        once()
    return watch


if __name__ == "__main__":
    main()
