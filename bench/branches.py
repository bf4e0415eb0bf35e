"""Do launches side by side pay? Training steps with the branches of a bundle and as a chain.

Run as ``python bench/branches.py BUNDLE … [--rounds 7] [--steps 20]`` where the bundles' device is.
The two take turns; both compute the same, which is checked.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

from bitfabric.runtime.bundle import Bundle, open_bundle
from bitfabric.runtime.measure import Training

WARM_UP = 4


def started(bundle: Bundle) -> Training:
    """Return a training whose step is recorded."""
    training = Training(bundle)
    for _ in range(WARM_UP):
        training.step()
    return training


def seconds(training: Training, steps: int) -> float:
    """Return the median time of some steps."""
    return statistics.median(training.step()[0] for _ in range(steps))


def main() -> None:
    """Measure, and print a line for each bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{'':30}{'chain ms':>10}{'branches ms':>13}{'ratio':>8}")
    for path in arguments.bundles:
        bundle = open_bundle(path)
        chain = started(replace(bundle, manifest=bundle.manifest | {"branches": {}}))
        branched = started(bundle)
        pairs = [
            (seconds(chain, arguments.steps), seconds(branched, arguments.steps))
            for _ in range(arguments.rounds)
        ]
        if chain.step()[1] != branched.step()[1]:
            raise SystemExit(f"{path}: the losses differ")
        ratio = statistics.median(one / other for one, other in pairs)
        name = f"{bundle.manifest['model']['name']}, {bundle.micro_batch} x {bundle.context}"
        times = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
        print(f"{name:30}{times[0]:10.3f}{times[1]:13.3f}{ratio:8.3f}")


if __name__ == "__main__":
    main()
