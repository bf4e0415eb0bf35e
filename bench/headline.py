"""LoRA training, prefill and decode on this machine, beside the rival's figures.

Run as ``python bench/headline.py [--model 125M --model 1B] [--target cpu] [--folder bundles]``; a
bundle that the folder has already is taken as it is. Each
measurement is a process of its own, so its peak memory is its own; the calibration of the machine
runs first and last. The rival's figures (llama.cpp's LoRA fine-tuning in QVAC Fabric at 57d4c98,
two threads; Vulkan on one H200) were taken on machines of the same kinds; they are scaled by
nothing, so read the calibration with them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CONTEXT, STEPS, DECODED = 128, 12, 48
ROUND_SECONDS = 0.3
RIVAL = {  # tokens a second: training, prefill 128, decode; MiB in training
    "cpu": {
        "125M": {"train": 42.0, "prefill": 1093.0, "decode": 262.0, "memory": 284.0},
        "1B": {"train": 3.6, "prefill": 134.0, "decode": 50.0, "memory": 988.0},
    },
    "gpu": {
        "125M": {"train": 553.0, "prefill": 13211.0, "decode": 737.0, "memory": 339.0},
        "1B": {"train": 199.0, "prefill": 16570.0, "decode": 290.0, "memory": 1047.0},
    },
}


def compiled(model: str, folder: Path, target: str = "cpu") -> Path:
    """Compile a random model of a published size, unless the folder has it."""
    path = folder / f"{model}.fabric"
    if (path / "manifest.json").is_file():
        return path
    from bitfabric.compiler import CompileOptions, compile_model
    from bitfabric.models import open_model
    from bitfabric.targets import get_target

    options = CompileOptions(context=CONTEXT)
    return compile_model(open_model(f"random:{model}"), get_target(target), options, path)


class Training:
    """LoRA steps of batch 1 on every module, rank 8.

    Parameters
    ----------
    path : str
        The bundle.
    """

    def __init__(self, path: str) -> None:
        import numpy as np
        from bitfabric.runtime import Batch, TrainingEngine, open_bundle

        bundle = open_bundle(path)
        self.engine, self.steps = TrainingEngine(bundle), 0
        self.engine.initialize_adapter(0)
        generator = np.random.default_rng(0)
        row = generator.integers(0, bundle.config["vocab_size"], (1, CONTEXT + 1), np.int32)
        starts = np.zeros((1, CONTEXT), np.int32)
        self.batch = Batch(row[:, :-1].copy(), row[:, 1:].copy(), starts)

    def step(self) -> tuple[float, float]:
        """Take a step; return its seconds and its mean loss."""
        self.steps += 1
        begin = time.perf_counter()
        loss = self.engine.accumulate(self.batch, 1.0 / CONTEXT, self.steps) / CONTEXT
        self.engine.update(learning_rate=1e-3, step=self.steps, clip_norm=1.0)
        return time.perf_counter() - begin, loss

    def round(self) -> float:
        """Return the seconds of a step, the median over a third of a second at least."""
        seconds: list[float] = []
        while sum(seconds) < ROUND_SECONDS:
            seconds.append(self.step()[0])
        return statistics.median(seconds)


class Inference:
    """A prompt of 128 tokens and the tokens after it."""

    def __init__(self, path: str) -> None:
        import numpy as np
        from bitfabric.runtime import InferenceEngine, open_bundle

        bundle = open_bundle(path)
        self.engine = InferenceEngine(bundle, capacity=CONTEXT + DECODED)
        self.prompt = np.random.default_rng(0).integers(0, bundle.config["vocab_size"], CONTEXT)

    def prefill(self) -> float:
        """Return the seconds that the prompt takes."""
        self.engine.reset()
        begin = time.perf_counter()
        self.engine.prefill(self.prompt)
        return time.perf_counter() - begin

    def decode(self) -> Iterator[float]:
        """Yield the seconds of each token after the prompt."""
        for token in self.prompt[:DECODED]:
            begin = time.perf_counter()
            self.engine.decode(int(token))
            yield time.perf_counter() - begin

    def round(self) -> float:
        """Return the seconds of a token."""
        self.prefill()
        return statistics.median(self.decode())


def train(path: str) -> dict[str, float]:
    """Return tokens a second of a LoRA step, and peak memory."""
    from bitfabric.runtime.memory import peak_memory_mib

    training = Training(path)
    seconds, losses = zip(*(training.step() for _ in range(STEPS)), strict=True)
    return {
        "train": CONTEXT / statistics.median(seconds[2:]),
        "best": CONTEXT / min(seconds),
        "memory": training.engine.device_memory_mib or peak_memory_mib(),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def infer(path: str) -> dict[str, float]:
    """Return tokens a second of a prompt of 128 tokens and of the tokens after it."""
    from bitfabric.runtime.memory import peak_memory_mib

    inference, prefill, decode = Inference(path), [], []
    for _ in range(5):
        prefill.append(inference.prefill())
        decode += inference.decode()
    return {
        "prefill": CONTEXT / statistics.median(prefill),
        "decode": 1.0 / statistics.median(decode),
        "memory": inference.engine.device_memory_mib or peak_memory_mib(),
    }


def rounds(work: type[Training | Inference]) -> Callable[[str], dict[str, float]]:
    """Return a measurement that prints a line of JSON for each line it reads, until the end."""

    def measure(path: str) -> dict[str, float]:
        from bitfabric.runtime.memory import peak_memory_mib

        running = work(path)
        for _ in sys.stdin:
            found = {"seconds": running.round(), "memory": peak_memory_mib()}
            print(json.dumps(found), flush=True)
        return {}

    return measure


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
        "ternary GB/s": f"{speed.ternary / 1e9:.1f}",
    }


def report(model: str, path: Path, kind: str) -> None:
    """Measure one model and print its table."""
    rival = RIVAL[kind][model]
    trained, inferred = child("train", path), child("infer", path)
    where = f"{os.cpu_count()} processors" if kind == "cpu" else "one GPU"
    print(f"\n{model}, LoRA rank 8 on every module, 1 x {CONTEXT}, {where}")
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
    parser.add_argument("--model", choices=sorted(RIVAL["cpu"]), action="append")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("bundles"))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        work, path = arguments.measure
        measure = {
            "train": train,
            "infer": infer,
            "calibration": calibrated,
            "train-rounds": rounds(Training),
            "infer-rounds": rounds(Inference),
        }[work]
        if found := measure(path):
            print(json.dumps(found))
        return
    kind = "cpu" if arguments.target.startswith("cpu") else "gpu"
    if kind == "cpu":
        print("calibration before:", calibration())
    for model in arguments.model or ["125M"]:
        report(model, compiled(model, arguments.folder, arguments.target), kind)
    if kind == "cpu":
        print("\ncalibration after: ", calibration())


if __name__ == "__main__":
    main()
