"""How fast a bundle works on this machine: rounds of training steps, prompts or written tokens.

``python -m bitfabric.runtime.measure BUNDLE --work train`` measures a round and prints it, a JSON
object on a line; then another for each line that it reads. It is how `fabric bench` measures a
bundle, in a process of its own, and needs the runtime alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..targets import FabricError
from .batch import Batch
from .bundle import Bundle, open_bundle
from .engine import TrainingEngine
from .inference import InferenceEngine
from .memory import peak_memory_mib

ROUND_SECONDS = 1.0
"""A round repeats its work for so long."""
WARM_UP = 3
"""Repetitions before the first round: a device compiles, records and replays its launches."""
PROMPT, WRITTEN = 128, 48
KINDS = ("train", "prefill", "decode")


@dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes
    ----------
    kind : str
        ``"train"``: a LoRA step and its update; ``"prefill"``: a prompt; ``"decode"``: tokens that
        are written one by one.
    batch : int
        Rows of a step, or sequences.
    tokens : int
        Of a row, of a prompt, or to be written.
    context : int
        Tokens before the written ones.
    """

    kind: str
    batch: int = 1
    tokens: int = PROMPT
    context: int = PROMPT

    @property
    def count(self) -> int:
        """Tokens of one repetition."""
        return self.batch * self.tokens


class Training:
    """LoRA steps on random tokens.

    Parameters
    ----------
    bundle : Bundle or path
        The bundle; its rows are as long as it was compiled for.
    batch : int, optional
        Rows of a step, a multiple of the micro-batch, which is the default.
    """

    def __init__(self, bundle: Bundle | str | Path, batch: int | None = None) -> None:
        bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.engine, self.steps = TrainingEngine(bundle), 0
        self.engine.initialize_adapter(0)
        rng = np.random.default_rng(0)
        parts = (batch or bundle.micro_batch) // bundle.micro_batch
        shape = bundle.micro_batch, bundle.context
        self._inverse = 1.0 / (parts * bundle.micro_batch * bundle.context)
        self._batches = []
        for _ in range(parts):
            rows = rng.integers(0, bundle.config["vocab_size"], (shape[0], shape[1] + 1), np.int32)
            self._batches.append(
                Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), np.zeros(shape, np.int32))
            )

    def step(self) -> tuple[float, float]:
        """Take a step; return its seconds and its mean loss, nats per token."""
        self.steps += 1
        begin = time.perf_counter()
        losses = [self.engine.accumulate(b, self._inverse, self.steps) for b in self._batches]
        # The norm comes back from the device, which by then has done everything else.
        self.engine.update(learning_rate=1e-3, step=self.steps, clip_norm=1.0)
        return time.perf_counter() - begin, sum(losses) * self._inverse


class Inference:
    """Prompts of random tokens, and tokens after them.

    Parameters
    ----------
    bundle : Bundle or path
        The bundle.
    prompt, written : int
        Tokens of each.
    batch : int
        Sequences.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        prompt: int = PROMPT,
        written: int = WRITTEN,
        batch: int = 1,
    ) -> None:
        bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.engine = InferenceEngine(bundle, capacity=prompt + written + 1, batch=batch)
        self._batch = batch
        tokens = np.random.default_rng(0).integers(
            0, bundle.config["vocab_size"], prompt + written, np.int32
        )
        self._prompt, self._written = tokens[:prompt].tolist(), tokens[prompt:].tolist()

    def prefill(self) -> float:
        """Return the seconds that the prompts take."""
        self.engine.reset()
        begin = time.perf_counter()
        for sequence in range(self._batch):
            self.engine.prefill(self._prompt, sequence)
        return time.perf_counter() - begin

    def decode(self) -> Iterator[float]:
        """Yield the seconds of each token after the prompt, of all sequences together."""
        for token in self._written:
            begin = time.perf_counter()
            if self._batch == 1:
                self.engine.decode(token)
            else:
                self.engine.decode_batch([token] * self._batch)
            yield time.perf_counter() - begin


class Measurement:
    """Work on a bundle, warmed up.

    Parameters
    ----------
    bundle : Bundle
        The bundle.
    work : Work
        What to do.
    """

    def __init__(self, bundle: Bundle, work: Work) -> None:
        self._work = work
        self._engine: TrainingEngine | InferenceEngine
        self._run: Callable[[], float]
        if work.kind == "train":
            training = Training(bundle, work.batch)
            self._engine, self._run = training.engine, lambda: training.step()[0]
        elif work.kind == "prefill":
            reading = Inference(bundle, work.tokens, 0, work.batch)
            self._engine, self._run = reading.engine, reading.prefill
        else:
            writing = Inference(bundle, work.context, work.tokens, work.batch)

            def write() -> float:
                writing.prefill()
                return sum(writing.decode())

            self._engine, self._run = writing.engine, write
        for _ in range(WARM_UP):
            self._run()

    def round(self) -> dict[str, float]:
        """Measure for a while.

        Returns
        -------
        dict
            ``tokens_per_s``, of the median repetition; ``tokens`` of all; ``host_memory_mib``, the
            most that the process held; ``peak_memory_mib``, the most of the device's memory, or
            the same where the processor computes.
        """
        seconds: list[float] = []
        end = time.perf_counter() + ROUND_SECONDS
        while not seconds or time.perf_counter() < end:
            seconds.append(self._run())
        host = peak_memory_mib()
        return {
            "tokens_per_s": self._work.count / statistics.median(seconds),
            "tokens": self._work.count * len(seconds),
            "peak_memory_mib": self._engine.device_memory_mib or host,
            "host_memory_mib": host,
        }


def answer(measure: Callable[[], dict[str, Any]]) -> None:
    """Print a round, and another for each line of standard input."""
    print(json.dumps(measure()), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--work", choices=KINDS, default="train")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--context", type=int, default=PROMPT)
    arguments = parser.parse_args()
    try:
        bundle = open_bundle(arguments.bundle)
        tokens = {"train": bundle.context, "prefill": PROMPT, "decode": WRITTEN}[arguments.work]
        work = Work(arguments.work, arguments.batch, arguments.tokens or tokens, arguments.context)
        answer(Measurement(bundle, work).round)
    except FabricError as error:
        print(json.dumps({"error": error.cause, "remedy": error.remedy}), flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
