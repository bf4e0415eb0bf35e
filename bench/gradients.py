"""What keeping one layer's gradients does to a training: its loss curve beside the exact one.

Run as ``python bench/gradients.py [--steps 60]``. Nano learns from `examples/biomedqa`, one row a
step, clipped at a norm that binds in most steps: with the gradients of all layers, with one
layer's clipped by the norm of the step before, and with one layer's and two backward passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

from bitfabric.compiler import CompileOptions, compile_model
from bitfabric.models import open_model
from bitfabric.runtime import open_bundle
from bitfabric.runtime.config import make_config
from bitfabric.runtime.streaming import StreamingTrainingEngine
from bitfabric.runtime.trainer import train
from bitfabric.targets import get_target

DATA = Path(__file__).parents[1] / "examples" / "biomedqa" / "train.jsonl"
WAYS = ("all", "layer", "layer-twice")
MEAN_OF = 10


def curve(bundle: Path, gradients: str, steps: int, clip: float, folder: Path) -> list[dict]:
    """Train and return the lines of metrics.jsonl."""
    engine = partial(StreamingTrainingEngine, resident=0, gradients=gradients)
    config = make_config(
        {
            "train": str(DATA),
            "adapter": str(folder),
            "batch": 1,
            "max_steps": steps,
            "epochs": 1.0,
            "clip_norm": clip,
            "learning_rate": 2e-3,
        }
    )
    train(open_bundle(bundle), engine, config)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """Print mean losses of ten steps at a time, a column for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--clip-norm", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bundle = compile_model(
            open_model("nano"), get_target("cpu"), CompileOptions(), Path(work) / "nano.fabric"
        )
        curves = {}
        for way in WAYS:
            folder = Path(work) / way
            curves[way] = curve(bundle, way, arguments.steps, arguments.clip_norm, folder)
    clipped = sum(line["grad_norm"] > arguments.clip_norm for line in curves["all"])
    print(f"{clipped} of {arguments.steps} steps are clipped")
    print("steps      " + "".join(f"{way:>14}" for way in WAYS))
    for begin in range(0, arguments.steps, MEAN_OF):
        means = (
            statistics.fmean(line["loss"] for line in curves[way][begin : begin + MEAN_OF])
            for way in WAYS
        )
        print(f"{begin + 1:4}-{begin + MEAN_OF:<6}" + "".join(f"{mean:14.4f}" for mean in means))


if __name__ == "__main__":
    main()
