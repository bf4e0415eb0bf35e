"""LoRA training, prefill and decode on this machine's processor, beside the rival's figures.

Run as ``python bench/headline.py [--model 125M --model 1B] [--folder /tmp/bundles]``. Each
measurement is a process of its own, so its peak memory is its own; the calibration of the machine
runs first and last. The rival's figures (llama.cpp's LoRA fine-tuning in QVAC Fabric at 57d4c98,
two threads) were taken on a machine of the same kind; they are scaled by nothing, so read the
calibration with them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONTEXT, STEPS, DECODED = 128, 12, 48
RIVAL = {  # tokens a second with two threads: training, prefill 128, decode; MiB in training
    "125M": {"train": 42.0, "prefill": 1093.0, "decode": 262.0, "memory": 284.0},
    "1B": {"train": 3.6, "prefill": 134.0, "decode": 50.0, "memory": 988.0},
}


def compiled(model: str, folder: Path) -> Path:
    """Compile a random model of a published size, unless the folder has it."""
    from bitfabric.compiler import CompileOptions, compile_model
    from bitfabric.models import open_model
    from bitfabric.targets import get_target

    path = folder / f"{model}.fabric"
    if not (path / "manifest.json").is_file():
        options = CompileOptions(context=CONTEXT)
        compile_model(open_model(f"random:{model}"), get_target("cpu"), options, path)
    return path


def train(path: str) -> dict[str, float]:
    """Return tokens a second of a LoRA step, batch 1, every module, rank 8; and peak memory."""
    import numpy as np
    from bitfabric.runtime import Batch, TrainingEngine, open_bundle
    from bitfabric.runtime.memory import peak_memory_mib

    bundle = open_bundle(path)
    engine = TrainingEngine(bundle)
    engine.initialize_adapter(0)
    generator = np.random.default_rng(0)
    row = generator.integers(0, bundle.config["vocab_size"], (1, CONTEXT + 1), np.int32)
    batch = Batch(row[:, :-1].copy(), row[:, 1:].copy(), np.zeros((1, CONTEXT), np.int32))
    seconds, losses = [], []
    for step in range(1, STEPS + 1):
        begin = time.perf_counter()
        losses.append(engine.accumulate(batch, 1.0 / CONTEXT, step) / CONTEXT)
        engine.update(learning_rate=1e-3, step=step, clip_norm=1.0)
        seconds.append(time.perf_counter() - begin)
    return {
        "train": CONTEXT / statistics.median(seconds[2:]),
        "best": CONTEXT / min(seconds),
        "memory": peak_memory_mib(),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def infer(path: str) -> dict[str, float]:
    """Return tokens a second of a prompt of 128 tokens and of the tokens after it."""
    import numpy as np
    from bitfabric.runtime import InferenceEngine, open_bundle
    from bitfabric.runtime.memory import peak_memory_mib

    bundle = open_bundle(path)
    engine = InferenceEngine(bundle, capacity=CONTEXT + DECODED)
    prompt = np.random.default_rng(0).integers(0, bundle.config["vocab_size"], CONTEXT)
    prefill, decode = [], []
    for _ in range(5):
        engine.reset()
        begin = time.perf_counter()
        engine.prefill(prompt)
        prefill.append(time.perf_counter() - begin)
        for token in prompt[:DECODED]:
            begin = time.perf_counter()
            engine.decode(int(token))
            decode.append(time.perf_counter() - begin)
    return {
        "prefill": CONTEXT / statistics.median(prefill),
        "decode": 1.0 / statistics.median(decode),
        "memory": peak_memory_mib(),
    }


def child(work: str, path: Path) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    run = subprocess.run(
        [sys.executable, __file__, "--measure", work, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


def calibration() -> str:
    """Return the machine's own speed, measured in a process of its own."""
    run = subprocess.run(
        [sys.executable, __file__, "--measure", "calibration", ""],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()[-1]


def calibrated(_: str) -> dict[str, str]:
    """Return the calibration in units that people read."""
    from bitfabric.compiler.calibration import calibrate
    from bitfabric.targets import get_target

    speed = calibrate(get_target("cpu"))
    return {
        "f32 GFLOP/s": f"{speed.float32 / 1e9:.0f}",
        "int8 dot GOP/s": f"{speed.int8 / 1e9:.0f}",
        "read GB/s": f"{speed.read / 1e9:.1f}",
    }


def report(model: str, path: Path) -> None:
    """Measure one model and print its table."""
    rival = RIVAL[model]
    trained, inferred = child("train", path), child("infer", path)
    print(f"\n{model}, LoRA rank 8 on every module, 1 x {CONTEXT}, {os.cpu_count()} processors")
    print(f"  {'':26}{'fabric':>10}{'rival':>10}{'ratio':>8}")
    for name, ours, key in (
        ("LoRA training, tokens/s", trained, "train"),
        ("prefill 128, tokens/s", inferred, "prefill"),
        ("decode, tokens/s", inferred, "decode"),
        ("training peak memory, MiB", trained, "memory"),
    ):
        print(f"  {name:26}{ours[key]:10.1f}{rival[key]:10.1f}{ours[key] / rival[key]:8.2f}")
    print(f"  best step: {trained['best']:.1f} tokens/s")
    print(f"  inference peak memory: {inferred['memory']:.0f} MiB")
    print(f"  loss {trained['first_loss']:.3f} to {trained['last_loss']:.3f} in {STEPS} steps")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(RIVAL), action="append")
    parser.add_argument("--folder", type=Path, default=Path("bundles"))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        work, path = arguments.measure
        measure = {"train": train, "infer": infer, "calibration": calibrated}[work]
        print(json.dumps(measure(path)))
        return
    print("calibration before:", calibration())
    for model in arguments.model or ["125M"]:
        report(model, compiled(model, arguments.folder))
    print("\ncalibration after: ", calibration())


if __name__ == "__main__":
    main()
