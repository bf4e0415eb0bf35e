"""A LoRA step with layers read from the disk: its time, its floor, its memory, its losses.

Run as ``python bench/streaming.py BUNDLE [--steps 3] [--cold] [--bound 3GiB] [--output FILE]``: the
bundle says what stays in memory; ``--resident N`` and ``--gradients layer`` say otherwise. With
``--bound`` the resident memory of the process, mapped files included, is looked at every 20 ms, and
ends the program where it is more.
The floor is the larger of two times that are measured apart: the same step with every layer in the
place of the first, so that nothing is read, and the reading alone. What lies between the step and
their sum is overlap. With ``--cold`` the system forgets the files before each of the three, so that
they come from the disk; without it they come from its cache, if it has the room.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bitfabric.runtime import Batch, Bundle, open_bundle
from bitfabric.runtime.layer_feed import LayerFeed
from bitfabric.runtime.memory import current_memory_mib, peak_memory_mib
from bitfabric.runtime.streaming import Outside, StreamingTrainingEngine

MIB = 1 << 20


class Still:
    """A feed that gives the first layer in the place of every one, and so reads nothing."""

    def __init__(self, feed: LayerFeed) -> None:
        self._feed, self.ends = feed, feed.ends

    def visit(self, order: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Yield the layers of an order, all with the tensors of the first."""
        for _, tensors in self._feed.visit([0]):
            for layer in order:
                yield layer, tensors


def random_batch(bundle: Bundle) -> Batch:
    """Return a micro-batch of random tokens, each labelled."""
    shape = (bundle.micro_batch, bundle.context + 1)
    row = np.random.default_rng(0).integers(0, bundle.config["vocab_size"], shape, np.int32)
    starts = np.zeros((shape[0], bundle.context), np.int32)
    return Batch(row[:, :-1].copy(), row[:, 1:].copy(), starts)


def forget(bundle: Bundle) -> None:
    """Ask the system to drop the weight files from its cache."""
    for index in range(len(bundle.manifest["weights"])):
        with bundle.weight_file(index)[0].open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def anonymous_mib() -> float:
    """Return the resident memory of this process that is no file's, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


class Measured:
    """An engine, and the times of its step.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    resident : int
        Layers that stay in memory.
    gradients : str
        What is kept of the gradients.
    cold : bool
        Whether the files come from the disk.
    """

    def __init__(
        self, bundle: Bundle, resident: int | None, gradients: str | None, cold: bool
    ) -> None:
        plan = bundle.manifest["plan"]
        self.engine = StreamingTrainingEngine(
            bundle,
            plan["resident_layers"] if resident is None else resident,
            gradients or plan["gradients"],
            Outside(plan["host_ends"], plan["evicted_layers"], plan["host_inputs"]),
        )
        self.engine.initialize_adapter(0)
        self._batch, self._cold, self._steps = random_batch(bundle), cold, 0
        self._layers = len(bundle.layers)

    def _timed(self, work: Any) -> float:
        if self._cold:
            forget(self.engine.bundle)
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    def _step(self) -> None:
        self._steps += 1
        labels = self._batch.labels.size
        self.loss = self.engine.accumulate(self._batch, 1.0 / labels, self._steps) / labels
        self.engine.update(learning_rate=1e-3, step=self._steps)

    def step(self) -> float:
        """Take a step; return its seconds."""
        return self._timed(self._step)

    def computing(self) -> float:
        """Return the seconds of a step that reads nothing; it changes the adapter."""
        feed = self.engine.feed
        self.engine.feed = Still(feed)  # type: ignore[assignment]
        seconds = self._timed(self._step)
        self.engine.feed = feed
        return seconds

    def reading(self) -> float:
        """Return the seconds of both passes over the layers without work on them."""

        def read() -> None:
            for order in (range(self._layers), reversed(range(self._layers))):
                for _ in self.engine.feed.visit(order):
                    pass

        return self._timed(read)


def gib(text: str) -> int:
    """Read a number of GiB, as bytes."""
    return int(float(text.removesuffix("GiB")) * (1 << 30))


class Bound:
    """A bound on this process's memory, of which a thread looks at what is resident.

    Parameters
    ----------
    size : int
        Bytes.
    """

    def __init__(self, size: int) -> None:
        self.size, self.most = size, 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, current_memory_mib())
            if self.most * MIB > self.size:
                print(f"beyond the bound: {self.most:,.0f} MiB", flush=True)
                os._exit(1)
            time.sleep(0.02)


class Lines:
    """Prints lines, and writes them to a file where there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._lines = path, []

    def __call__(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)
        self._lines.append(line)
        if self._path is not None:
            self._path.write_text("\n".join(self._lines) + "\n")


def main() -> None:
    """Print a line a step, then what bounds it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--resident", type=int)
    parser.add_argument("--gradients")
    parser.add_argument("--bound", type=gib, help="most memory, such as 3GiB")
    parser.add_argument("--output", type=Path, help="write the lines to a file as well")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    say = Lines(arguments.output)
    bound = Bound(arguments.bound) if arguments.bound else None
    bundle = open_bundle(arguments.bundle)
    manifest, plan = bundle.manifest, bundle.manifest["plan"]
    say(
        f"{manifest['model']['name']} on {manifest['target']['name']}: rows of {bundle.context} "
        f"tokens, LoRA rank {bundle.lora['rank']}, {manifest['packing']} weights, "
        f"{manifest['moments']} moments, {plan['resident_layers']} layers in memory, planned "
        f"{plan['training']['peak'] / MIB:,.0f} MiB"
    )
    measured = Measured(bundle, arguments.resident, arguments.gradients, arguments.cold)
    seconds, anonymous = [], 0.0
    for number in range(1, arguments.steps + 1):
        seconds.append(measured.step())
        anonymous = max(anonymous, anonymous_mib())
        say(f"step {number}: loss {measured.loss:.4f}, {seconds[-1]:.2f} s")
    step = min(seconds[1:] or seconds)
    device = measured.engine.device_memory_mib
    if bound is not None:
        say(f"bound: {bound.size / MIB:,.0f} MiB; {bound.most:,.0f} MiB resident at most")
    say(
        f"memory: {peak_memory_mib():,.0f} MiB at most in the process with the mapped files, "
        f"{anonymous:,.0f} MiB after a step without them"
        + (f"; {device:,.0f} MiB at most on the device" if device else "")
    )
    times = measured.engine.feed.times
    if times.bytes:
        say(
            f"reading: {times.bytes / MIB:,.0f} MiB in {times.reading:.2f} s, of which the "
            f"computing waited for {times.waiting:.2f} s"
        )
    computing, reading = measured.computing(), measured.reading()
    floor = max(computing, reading)
    # Three times of a shared machine, which may be a little more or less than they should.
    hidden = min(max((computing + reading - step) / min(computing, reading), 0.0), 1.0)
    say(
        f"floor: computing alone {computing:.2f} s, reading alone {reading:.2f} s; the step of "
        f"{step:.2f} s is {step / floor:.2f} of the larger, {100 * hidden:.0f} % of the smaller "
        "is hidden"
    )


if __name__ == "__main__":
    main()
