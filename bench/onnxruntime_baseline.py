"""Prefill and decode of one model in onnxruntime and in fabric, measured in turns.

Run as ``python bench/onnxruntime_baseline.py [--model random:125M] [--bits 2 --bits 8]``. The model
is exported (an f16 head, as fabric's bundle gets one) and compiled; then each round gives every
engine one prompt and some tokens after it, so that a machine that slows down slows down all. The
figures are medians over the rounds; the ratio is fabric's over the best of onnxruntime.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROMPT, DECODED = 128, 32
Run = Callable[[list[int], list[int]], tuple[float, float]]
"""Takes a prompt and the tokens after it; gives the seconds of each part."""


def onnxruntime_engine(path: Path, threads: int) -> Run:
    """Open a decoder in onnxruntime; its cache stays in the runtime's own buffers."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shapes = {
        value.name: value.shape
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    names = [value.name for value in session.get_outputs()]

    def run(prompt: list[int], after: list[int]) -> tuple[float, float]:
        empty = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((1, shape[1], 0, shape[3]), np.float32)
            )
            for name, shape in shapes.items()
        }
        cache, position, seconds = empty, 0, []
        for tokens in [prompt, *([token] for token in after)]:
            begin = time.perf_counter()
            length = len(tokens)
            feeds = {
                "input_ids": np.array([tokens], np.int64),
                "attention_mask": np.ones((1, position + length), np.int64),
                "position_ids": np.arange(position, position + length)[None],
            }
            binding = session.io_binding()
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            for name, value in cache.items():
                binding.bind_ortvalue_input(name, value)
            for name in names:
                binding.bind_output(name)
            session.run_with_iobinding(binding)
            outputs = dict(zip(names, binding.get_outputs(), strict=True))
            outputs.pop("logits").numpy()
            cache = {
                name.replace("present.", "past_key_values."): value
                for name, value in outputs.items()
            }
            position += length
            seconds.append(time.perf_counter() - begin)
        return seconds[0], sum(seconds[1:])

    return run


def fabric_engine(path: Path) -> Run:
    """Open a bundle."""
    from bitfabric.runtime import InferenceEngine, open_bundle

    engine = InferenceEngine(open_bundle(path), capacity=PROMPT + DECODED)

    def run(prompt: list[int], after: list[int]) -> tuple[float, float]:
        engine.reset()
        begin = time.perf_counter()
        engine.prefill(prompt)
        middle = time.perf_counter()
        for token in after:
            engine.decode(token)
        return middle - begin, time.perf_counter() - middle

    return run


def engines(model: str, bits: list[int], folder: Path, threads: int) -> dict[str, Run]:
    """Export and compile a model, and open all that came of it."""
    from bitfabric.compiler import CompileOptions, compile_model
    from bitfabric.models import open_model
    from bitfabric.models.onnx_format import OnnxOptions, export_onnx
    from bitfabric.targets import get_target

    checkpoint = open_model(model)
    opened = {}
    for number in bits:
        files = export_onnx(checkpoint, folder / f"{number}" / "model.onnx", OnnxOptions(number))
        size = sum(file.stat().st_size for file in files) / 2**20
        opened[f"onnxruntime, {number} bits, {size:.0f} MiB"] = onnxruntime_engine(
            files[0], threads
        )
    bundle = folder / "model.fabric"
    compile_model(checkpoint, get_target("cpu"), CompileOptions(context=PROMPT, head="f16"), bundle)
    return {"fabric": fabric_engine(bundle), **opened}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--bits", type=int, choices=(2, 4, 8), action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(arguments.threads)

    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        bits = arguments.bits or [2, 4, 8]
        opened = engines(arguments.model, bits, Path(folder), arguments.threads)
        tokens = np.random.default_rng(0).integers(3, 1000, PROMPT + DECODED).tolist()
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in opened}
        for number in range(arguments.rounds + 1):
            for name, run in opened.items():
                seconds = run(tokens[:PROMPT], tokens[PROMPT:])
                if number:
                    taken[name].append(seconds)
    print(f"\n{arguments.model}, f16 head, {arguments.threads} threads, tokens a second")
    print(f"  {'':36}{f'prefill {PROMPT}':>14}{'decode':>10}")
    speeds = {
        name: (
            PROMPT / statistics.median(first for first, _ in seconds),
            DECODED / statistics.median(rest for _, rest in seconds),
        )
        for name, seconds in taken.items()
    }
    for name, (prefill, decode) in speeds.items():
        print(f"  {name:36}{prefill:14.1f}{decode:10.1f}")
    others = [speed for name, speed in speeds.items() if name != "fabric"]
    ratios = [speeds["fabric"][i] / max(speed[i] for speed in others) for i in (0, 1)]
    print(f"  {'fabric over the best of onnxruntime':36}{ratios[0]:14.2f}{ratios[1]:10.2f}")


if __name__ == "__main__":
    main()
