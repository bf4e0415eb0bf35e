"""What a model gains by its records: training, prompts and writing, with and without, in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .output import Output
from .progress import PhaseBar

if TYPE_CHECKING:
    from ..compiler import CompileOptions
    from ..compiler.tuning.applied import Tuning
    from ..models import Checkpoint
    from ..runtime.bundle import Bundle
    from ..targets import Target

SECONDS = 8.0
"""Time to measure each kind of work in."""
LEAST_TURNS = 3
WRITTEN = 16
"""Tokens written in one turn."""
CAPACITY = 272
Step = Callable[[], object]


def measured_gain(
    model: Checkpoint, target: Target, options: CompileOptions, tuning: Tuning, bar: PhaseBar
) -> dict[str, Any]:
    """Compile a model with and without its records, and time both in turns.

    Returns
    -------
    dict
        For ``"training"``, ``"prefill"`` and ``"decode"``: ``before`` and ``after``, seconds of a
        step, a prompt or a token, medians; and ``gain``, the median of their quotients.
    """
    from ..compiler import compile_model
    from ..compiler.tuning.applied import Tuning
    from ..runtime.bundle import open_bundle

    with tempfile.TemporaryDirectory(prefix="fabric-tune-") as name:
        bundles = []
        for folder, records in (("before", Tuning(target)), ("after", tuning)):
            bar(f"compile the model {'with' if folder == 'after' else 'without'} records", 0.0)
            path = compile_model(model, target, options, Path(name) / folder, tuning=records)
            bundles.append(open_bundle(path))
        bar("measure training", 0.4)
        found = {"training": _compared([_training(bundle) for bundle in bundles], 1)}
        bar("measure prompts", 0.6)
        engines = [_inference(bundle) for bundle in bundles]
        found["prefill"] = _compared([engine[0] for engine in engines], 1)
        bar("measure writing", 0.8)
        found["decode"] = _compared([engine[1] for engine in engines], WRITTEN)
    return found


def report_gain(output: Output, gain: dict[str, Any]) -> None:
    """Show what was measured."""
    table = output.table("the whole model", "before", "after", "gain", numbers=(1, 2, 3))
    names = {"training": "a training step", "prefill": "a prompt", "decode": "a written token"}
    for work, name in names.items():
        values = gain[work]
        times = (f"{1e3 * values[when]:.2f} ms" for when in ("before", "after"))
        table.add_row(name, *times, f"{values['gain']:.2f} x")
    output.say()
    output.show(table)


def _training(bundle: Bundle) -> Step:
    """Return a step of training on random tokens."""
    from ..runtime.batch import Batch
    from ..runtime.engine import TrainingEngine

    engine = TrainingEngine(bundle)
    engine.initialize_adapter(0)
    shape = (bundle.micro_batch, bundle.context)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, bundle.config["vocab_size"], shape, np.int32)
    batch = Batch(tokens, np.roll(tokens, -1, 1), np.zeros(shape, np.int32))

    def step() -> None:
        engine.accumulate(batch, 1.0 / tokens.size, 0)
        engine.update(learning_rate=1e-4, step=1)

    return step


def _inference(bundle: Bundle) -> tuple[Step, Step]:
    """Return the reading of a prompt as long as a training row, and the writing of some tokens."""
    from ..runtime.inference import InferenceEngine

    engine = InferenceEngine(bundle, capacity=max(CAPACITY, bundle.context + WRITTEN))
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, bundle.config["vocab_size"], bundle.context).tolist()

    def read() -> None:
        engine.reset()
        engine.prefill(prompt)

    def write() -> None:
        engine.reset()
        for token in prompt[:WRITTEN]:
            engine.decode(token)

    return read, write


def _compared(steps: list[Step], parts: int) -> dict[str, float]:
    """Time two steps in turns; `parts` is how many pieces of work one has."""
    times: list[list[float]] = [[], []]
    for step in steps:
        step()
    end, turn = time.perf_counter() + SECONDS, 0
    while turn < LEAST_TURNS or time.perf_counter() < end:
        for index in (turn % 2, 1 - turn % 2):
            start = time.perf_counter()
            steps[index]()
            times[index].append((time.perf_counter() - start) / parts)
        turn += 1
    before, after = times
    return {
        "before": statistics.median(before),
        "after": statistics.median(after),
        "gain": statistics.median(b / a for b, a in zip(before, after, strict=True)),
    }
