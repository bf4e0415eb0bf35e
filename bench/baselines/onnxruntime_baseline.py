"""Prefill and decode in onnxruntime, of the decoder that `fabric export --onnx` writes.

Run as ``python bench/baselines/onnxruntime_baseline.py --model random:125M --work decode``, or by
``fabric bench … --against onnxruntime``; ``--bits 8`` chooses how the ternary weights are stored.
The output head is 16-bit: ``fabric bench --head f16`` compares like with like. It prints a JSON
object for a round, and another for each line that it reads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bitfabric.runtime.measure import ROUND_SECONDS, answer
from bitfabric.runtime.memory import peak_memory_mib


class Decoder:
    """A decoder whose cache stays in onnxruntime's own buffers.

    Parameters
    ----------
    path : pathlib.Path
        The ONNX file.
    threads : int
        Threads of a product.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        self._names = [value.name for value in self._session.get_outputs()]
        self._empty = {
            value.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            )
            for value in self._session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        self._cache, self._position = self._empty, 0

    def append(self, tokens: list[int]) -> float:
        """Append tokens and fetch the logits; return the seconds it takes."""
        import numpy as np

        begin = time.perf_counter()
        end = self._position + len(tokens)
        binding = self._session.io_binding()
        for name, array in {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self._position, end)[None],
        }.items():
            binding.bind_cpu_input(name, array)
        for name, value in self._cache.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        outputs = dict(zip(self._names, binding.get_outputs(), strict=True))
        outputs.pop("logits").numpy()
        self._cache = {
            name.replace("present.", "past_key_values."): value for name, value in outputs.items()
        }
        self._position = end
        return time.perf_counter() - begin


def exported(model: str, bits: int, folder: Path) -> Path:
    """Write a model as a decoder, by a process whose memory does not count; return its file."""
    path = folder / "model.onnx"
    command = [sys.executable, "-m", "bitfabric.cli", "export", model]
    command += ["--onnx", str(path), "--bits", str(bits)]
    # Standard output is for rounds.
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)
    return path


def parsed() -> argparse.Namespace:
    """Read the command line; what is for other programs is left alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--bits", type=int, choices=(2, 4, 8), default=2)
    parser.add_argument("--work", choices=("prefill", "decode"), default="prefill")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--batch", type=int, choices=(1,), default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments, _ = parser.parse_known_args()
    return arguments


def main() -> None:
    """Measure a round, and another for each line of standard input."""
    arguments = parsed()
    with tempfile.TemporaryDirectory() as folder:
        path = exported(arguments.model, arguments.bits, Path(folder))
        decoder = Decoder(path, arguments.threads)
        tokens = list(range(3, 3 + max(arguments.tokens, arguments.context)))

        def work() -> float:
            decoder.reset()
            if arguments.work == "prefill":
                return decoder.append(tokens[: arguments.tokens])
            decoder.append(tokens[: arguments.context])
            return sum(decoder.append([token]) for token in tokens[: arguments.tokens])

        def measure() -> dict[str, Any]:
            seconds: list[float] = []
            end = time.perf_counter() + ROUND_SECONDS
            while not seconds or time.perf_counter() < end:
                seconds.append(work())
            return {
                "tokens_per_s": arguments.tokens / statistics.median(seconds),
                "tokens": arguments.tokens * len(seconds),
                "peak_memory_mib": peak_memory_mib(),
            }

        work()
        answer(measure)


if __name__ == "__main__":
    main()
