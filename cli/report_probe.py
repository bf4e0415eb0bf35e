"""A bundle's numbers and speeds, in a process that a bad driver may take down.

``python -m bitfabric.cli.report_probe BUNDLE SEED OUT`` writes the numbers of a training step and
of a few tokens to OUT, an .npz file, and prints ``{"speeds": ...}`` in tokens a second. Two bundles
of one model give the same numbers but for rounding, whatever they are compiled for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.batch import Batch
from ..runtime.bundle import Bundle, open_bundle
from ..runtime.engine import TrainingEngine
from ..runtime.inference import InferenceEngine

SECONDS = 2.0
"""Time to measure each kind of work in."""
PROMPT, WRITTEN, CAPACITY = 32, 16, 1040
SPREAD = 0.02
"""Of the adapter's random values, so that both of its factors have gradients."""


def training(bundle: Bundle, seed: int) -> tuple[dict[str, np.ndarray], float]:
    """Return the numbers of a training step, and its tokens a second."""
    engine, random = TrainingEngine(bundle), np.random.default_rng(seed)
    state = engine.state()
    state["adapter"] = random.normal(0.0, SPREAD, state["adapter"].shape).astype(np.float32)
    engine.load_state(state)
    shape = (bundle.micro_batch, bundle.context)
    tokens, labels = random.integers(0, bundle.config["vocab_size"], (2, *shape), np.int32)
    batch = Batch(tokens, labels, np.zeros(shape, np.int32))
    count = tokens.size
    found = {"evaluation loss": np.array(engine.evaluate(batch))}
    found["training loss"] = np.array(engine.accumulate(batch, 1.0 / count, seed=0))
    for name, value in engine.gradient_tensors().items():
        found[f"gradient of {name}"] = value
    found["gradient norm"] = np.array(engine.update(learning_rate=1e-4, step=1))

    def step() -> None:
        engine.accumulate(batch, 1.0 / count, seed=0)
        engine.update(learning_rate=1e-4, step=2)

    return found, _rate(step, count)


def writing(bundle: Bundle, seed: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the logits after a prompt and after each of some tokens, and tokens a second."""
    random = np.random.default_rng(seed)
    prompt = random.integers(0, bundle.config["vocab_size"], PROMPT).tolist()
    after = random.integers(0, bundle.config["vocab_size"], WRITTEN, np.int32)
    engine = InferenceEngine(bundle, capacity=CAPACITY)
    found = {"logits after a prompt": np.array(engine.prefill(prompt))}
    written = [np.array(engine.decode(int(token))) for token in after]
    found["logits after tokens"] = np.stack(written)

    def write() -> None:
        engine.reset()
        for token in after:
            engine.decode(int(token))

    def read() -> None:
        engine.reset()
        engine.prefill(prompt)

    return found, {"decode": _rate(write, WRITTEN), "prefill": _rate(read, PROMPT)}


def _rate(work: Callable[[], None], tokens: int) -> float:
    """Return the tokens a second of the median turn."""
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return tokens / sorted(times)[len(times) // 2]


def main(bundle: str, seed: str, out: str) -> None:
    """Do what the module's head says."""
    opened = open_bundle(bundle)
    numbers, step = training(opened, int(seed))
    logits, speeds = writing(opened, int(seed))
    found: dict[str, Any] = {**numbers, **logits}
    np.savez(Path(out), **found)
    print(json.dumps({"speeds": {"training": step, **speeds}}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
