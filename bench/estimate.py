"""How far the estimate is from the truth: predicted and measured memory and time, side by side.

Run as ``python bench/estimate.py [--model 125M --model 1B] [--rounds 15] [--folder bundles]``. A
shared machine's speed moves from one second to the next, so the calibration that the prediction is
scaled by and the measurement alternate, and the median over the rounds of their ratio counts. What
is measured is what `fabric bench` measures, in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from bitfabric.cli.bench_sides import Side
from bitfabric.compiler import CompileOptions, estimate
from bitfabric.compiler.calibration import Calibrator
from bitfabric.models import open_model
from bitfabric.targets import get_target
from headline import CONTEXT, compiled

CALIBRATION_SECONDS = 0.15
"""How long each of the three probes runs in a round."""


def compared(model: str, train: bool, folder: Path, rounds: int) -> Iterator[tuple[str, ...]]:
    """Yield the table's rows of memory and of time."""
    work, config = "train" if train else "decode", open_model(f"random:{model}").config
    target, options = get_target("cpu"), CompileOptions(context=CONTEXT)
    calibrator, pairs, memory = Calibrator(target), [], 0.0
    command = [sys.executable, "-m", "bitfabric.runtime.measure", str(compiled(model, folder))]
    tokens = CONTEXT if train else 1
    with Side("fabric", [*command, "--work", work]) as side:
        side.round()
        for _ in range(rounds):
            speed = calibrator.measure(CALIBRATION_SECONDS)
            found = side.round()
            predicted = estimate(config, target, options, train, speed)
            pairs.append((predicted.step_seconds, tokens / found["tokens_per_s"]))
            memory = found["peak_memory_mib"]
    yield row(f"{model} {work} memory", [(predicted.peak_memory_mib, memory)], "MiB")
    yield row(f"{model} {work} step", [(1e3 * p, 1e3 * m) for p, m in pairs], "ms")


def row(name: str, pairs: list[tuple[float, float]], unit: str) -> tuple[str, ...]:
    """Return the medians of both sides and of their ratio, with the ratio's quartiles."""
    predicted, measured = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(p / m for p, m in pairs)
    quartiles = f"{ratios[len(ratios) // 4]:.2f}-{ratios[-1 - len(ratios) // 4]:.2f}"
    median = f"{statistics.median(ratios):.2f}"
    return name, f"{predicted:.1f} {unit}", f"{measured:.1f} {unit}", median, quartiles


def main() -> None:
    """Print a table of predictions, measurements and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("125M", "1B"), action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("bundles"))
    arguments = parser.parse_args()
    print(f"{'':22}{'predicted':>13}{'measured':>13}{'ratio':>8}{'quartiles':>12}")
    for model in arguments.model or ["125M", "1B"]:
        for train in (True, False):
            for name, *values in compared(model, train, arguments.folder, arguments.rounds):
                print(f"{name:22}{values[0]:>13}{values[1]:>13}{values[2]:>8}{values[3]:>12}")


if __name__ == "__main__":
    main()
