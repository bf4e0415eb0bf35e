"""The two packings of ternary weights side by side: memory, training, prompts and decoding.

Run as ``python bench/packings.py [--model 125M] [--target cpu] [--rounds 7]``. Both bundles are
compiled from the same random weights and run in one process, turn by turn, so that whatever else
the machine does meets both; the figures are medians of the rounds. No tuning records are used, so
that both have the same schedules; then losses and logits must be equal to the last bit, since a
packing only says where the bits of a weight are.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from bitfabric.compiler import CompileOptions, compile_model
from bitfabric.compiler.tuning.applied import Tuning
from bitfabric.models import open_model
from bitfabric.models.packing import PACKINGS
from bitfabric.runtime import Batch, InferenceEngine, TrainingEngine, open_bundle
from bitfabric.targets import get_target

CONTEXT, DECODED = 128, 48


class Contestant:
    """The bundle of one packing, opened for training and for inference."""

    def __init__(self, model: str, target: str, packing: str, folder: Path) -> None:
        options = CompileOptions(context=CONTEXT, packing=packing)
        path = folder / f"{packing}.fabric"
        found = get_target(target)
        checkpoint = open_model(f"random:{model}")
        compile_model(checkpoint, found, options, path, tuning=Tuning(found))
        bundle = open_bundle(str(path))
        vocabulary = bundle.config["vocab_size"]
        self.weights = sum(f.stat().st_size for f in path.glob("weights/layer_*.bin"))
        self.training = TrainingEngine(bundle)
        self.training.initialize_adapter(0)
        self.inference = InferenceEngine(bundle, capacity=CONTEXT + DECODED)
        row = np.random.default_rng(0).integers(0, vocabulary, (1, CONTEXT + 1), np.int32)
        starts = np.zeros((1, CONTEXT), np.int32)
        self.batch = Batch(row[:, :-1].copy(), row[:, 1:].copy(), starts)
        self.steps = 0

    def train(self) -> tuple[float, float]:
        """Take a step; return its seconds and its mean loss."""
        self.steps += 1
        begin = time.perf_counter()
        loss = self.training.accumulate(self.batch, 1.0 / CONTEXT, self.steps) / CONTEXT
        self.training.update(learning_rate=1e-3, step=self.steps, clip_norm=1.0)
        return time.perf_counter() - begin, loss

    def prefill(self) -> tuple[float, float]:
        """Read a prompt; return the seconds and a digest of the logits."""
        self.inference.reset()
        begin = time.perf_counter()
        logits = self.inference.prefill(self.batch.tokens[0])
        return time.perf_counter() - begin, float(np.abs(logits).sum())

    def decode(self) -> tuple[float, float]:
        """Write tokens after it; return the median seconds of one and a digest of the logits."""
        seconds = []
        for token in self.batch.tokens[0, :DECODED]:
            begin = time.perf_counter()
            logits = self.inference.decode(int(token))
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds), float(np.abs(logits).sum())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="125M")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            name: Contestant(arguments.model, arguments.target, name, Path(folder))
            for name in PACKINGS
        }
        works = {"LoRA training": "train", "prefill 128": "prefill", "decode": "decode"}
        seconds: dict[tuple[str, str], list[float]] = {}
        for turn in range(arguments.rounds + 1):
            for work, method in works.items():
                found = {n: getattr(c, method)() for n, c in contestants.items()}
                if len({digest for _, digest in found.values()}) != 1:
                    raise SystemExit(f"{work}: the packings differ: {found}")
                for name, (elapsed, _) in found.items():
                    if turn:
                        seconds.setdefault((work, name), []).append(elapsed)
    print(f"{arguments.model} on {arguments.target}, 1 x {CONTEXT}, median of {arguments.rounds}")
    print(f"  {'':24}" + "".join(f"{name:>12}" for name in contestants) + f"{'ratio':>8}")
    sizes = [c.weights / 2**20 for c in contestants.values()]
    print(
        f"  {'layers, MiB':24}"
        + "".join(f"{s:12.1f}" for s in sizes)
        + f"{sizes[1] / sizes[0]:8.2f}"
    )
    for work in works:
        tokens = 1 if work == "decode" else CONTEXT
        rates = [tokens / statistics.median(seconds[work, name]) for name in contestants]
        row = "".join(f"{rate:12.1f}" for rate in rates) + f"{rates[1] / rates[0]:8.2f}"
        print(f"  {work + ', tokens/s':24}{row}")


if __name__ == "__main__":
    main()
