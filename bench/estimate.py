"""How far the estimate is from the truth: predicted and measured memory and time, side by side.

Run as ``python bench/estimate.py [--model 125M --model 1B] [--folder bundles]``. What is measured
is what a person runs: `bench/headline.py`'s processes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bitfabric.compiler import CompileOptions, estimate
from bitfabric.models import open_model
from bitfabric.targets import get_target
from headline import CONTEXT, child, compiled


def main() -> None:
    """Print a table of predictions, measurements and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("125M", "1B"), action="append")
    parser.add_argument("--folder", type=Path, default=Path("bundles"))
    arguments = parser.parse_args()
    print(f"{'':26}{'predicted':>12}{'measured':>12}{'ratio':>8}")
    for model in arguments.model or ["125M", "1B"]:
        bundle = compiled(model, arguments.folder)
        config = open_model(f"random:{model}").config
        for train, work, rate in ((True, "train", "train"), (False, "infer", "decode")):
            found = estimate(config, get_target("cpu"), CompileOptions(context=CONTEXT), train)
            measured = child(work, bundle)
            seconds = (CONTEXT if train else 1) / measured[rate]
            for name, predicted, real, unit in (
                (f"{model} {work} memory", found.peak_memory_mib, measured["memory"], "MiB"),
                (f"{model} {work} step", found.step_seconds * 1e3, seconds * 1e3, "ms"),
            ):
                ratio = predicted / real
                print(f"{name:26}{predicted:8.1f} {unit:3}{real:8.1f} {unit:3}{ratio:8.2f}")


if __name__ == "__main__":
    main()
