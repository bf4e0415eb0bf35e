"""metrics.jsonl: one line for every step and every validation, in step with the checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from .files import atomic_write, plain_json, read_error, write_error


@dataclass(frozen=True)
class Transfer:
    """How much of a step's reading was hidden behind its computing.

    Attributes
    ----------
    transfer_s : float
        Seconds in which layers were read and copied.
    compute_s : float
        Seconds of the step in which nothing waited for them.
    wall_s : float
        Seconds of the step.
    overlap : float
        Fraction of the transfer that was hidden, 0 to 1; 1 where nothing was read.
    """

    transfer_s: float
    compute_s: float
    wall_s: float
    overlap: float

    @classmethod
    def of(cls, reading: float, waiting: float, wall: float) -> Transfer:
        """Make it of the seconds of reading, of waiting for it, and of the step."""
        hidden = 1.0 - waiting / reading if reading > 0.0 else 1.0
        return cls(reading, max(wall - waiting, 0.0), wall, min(max(hidden, 0.0), 1.0))


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step was like.

    Parameters
    ----------
    step : int
        From 1.
    epoch : float
        Epochs done after it.
    loss : float
        Mean cross-entropy of its labelled tokens, in nats.
    lr, grad_norm : float
        Learning rate, and the gradients' global norm before clipping.
    tokens : int
        Real tokens of the step, padding left out.
    tokens_per_s, memory_mib, time : float
        Speed of the step, memory held after it, seconds of training since its start.
    transfer : Transfer, optional
        Of layers that are read while others compute.
    """

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_s: float
    memory_mib: float
    time: float
    transfer: Transfer | None = None


@dataclass(frozen=True)
class EvalMetrics:
    """What one validation gave.

    Parameters
    ----------
    step : int
        Steps done before it; 0 before the training.
    epoch : float
    eval_loss, eval_perplexity : float
        Mean cross-entropy of the labelled tokens in nats, and its exponential.
    time : float
        Seconds of training since its start.
    """

    step: int
    epoch: float
    eval_loss: float
    eval_perplexity: float
    time: float


class MetricsFile:
    """Appends metrics, one JSON object a line.

    Parameters
    ----------
    path : Path
        metrics.jsonl.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Unbuffered: a line that does not fit a full disk must not be tried again at the end.
        self._file: FileIO | None = None

    def open_after(self, step: int, *, evaluated: int) -> None:
        """Keep what was written up to `step`, and open the file to append.

        A run that was killed may have written more steps than its checkpoint holds, and half a
        line; they are computed again, so they are cut off here, atomically.

        Parameters
        ----------
        step : int
            The checkpoint's step; 0 with `evaluated` -1 empties the file.
        evaluated : int
            The step of the checkpoint's last validation, -1 for none.
        """
        kept = [
            entry
            for entry in read_metrics(self.path)
            if entry["step"] <= (evaluated if "eval_loss" in entry else step)
        ]
        with atomic_write(self.path) as file:
            for entry in kept:
                file.write(json.dumps(entry).encode() + b"\n")
        try:
            self._file = FileIO(self.path, "a")
        except OSError as error:
            raise write_error(self.path, error) from error

    def write(self, metrics: StepMetrics | EvalMetrics) -> None:
        """Append one line.

        Raises
        ------
        FileError
            Where the disk is full.
        """
        assert self._file is not None, "open_after comes first"
        values = {key: value for key, value in asdict(metrics).items() if value is not None}
        line = json.dumps(plain_json(values)).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise write_error(self.path, error) from error

    def sync(self) -> None:
        """Make all lines reach the disk, before a checkpoint that counts on them is written."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise write_error(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Read the lines of a metrics.jsonl that are whole; none where there is no such file."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise read_error(path, error) from error
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield entry
