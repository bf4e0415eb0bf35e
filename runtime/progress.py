"""Telling a person how a training goes: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, TextIO

from .metrics import EvalMetrics, StepMetrics

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 5.0
_SMOOTHING = 0.9


class Reporter(Protocol):
    """What the training loop tells while it runs."""

    def begin(self, step: int, total: int) -> None:
        """The loop starts after `step` of `total`."""

    def validating(self, done: int, total: int) -> None:
        """A validation has done so many of its rows."""

    def step(self, metrics: StepMetrics) -> None:
        """A step is done."""

    def evaluation(self, metrics: EvalMetrics) -> None:
        """A validation is done."""

    def note(self, text: str) -> None:
        """Something worth a sentence."""

    def end(self) -> None:
        """The loop is left, for whatever reason."""


class _Smoothed:
    """Averages over steps that forget the old ones: loss, tokens a second, seconds a step."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.speed = 0.0
        self.seconds = 0.0
        self._weight = 0.0

    def add(self, metrics: StepMetrics) -> None:
        """Take a step into the averages; the weights of all steps always add up to one."""
        self._weight = _SMOOTHING * self._weight + 1
        seconds = metrics.tokens / max(metrics.tokens_per_s, 1e-9)
        self.loss += (metrics.loss - self.loss) / self._weight
        self.speed += (metrics.tokens_per_s - self.speed) / self._weight
        self.seconds += (seconds - self.seconds) / self._weight


class PlainReporter:
    """One line every few seconds and for every validation; for pipes, logs and files.

    Parameters
    ----------
    stream : TextIO
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._smoothed = _Smoothed()
        self._total = 0
        self._told = float("-inf")

    def begin(self, step: int, total: int) -> None:
        """Note the number of steps."""
        self._total = total

    def validating(self, done: int, total: int) -> None:
        """Say nothing: the result follows."""

    def step(self, metrics: StepMetrics) -> None:
        """Print a line where the last one is old enough, and for the last step."""
        self._smoothed.add(metrics)
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_LINES and metrics.step != self._total:
            return
        self._told = now
        left = clock((self._total - metrics.step) * self._smoothed.seconds)
        self.note(
            f"step {metrics.step}/{self._total}  epoch {metrics.epoch:.2f}  "
            f"loss {metrics.loss:.4f}  lr {metrics.lr:.1e}  {self._smoothed.speed:.0f} tok/s  "
            f"{metrics.memory_mib:.0f} MiB  {left} left"
        )

    def evaluation(self, metrics: EvalMetrics) -> None:
        """Print the validation's result."""
        self.note(evaluation_line(metrics))

    def note(self, text: str) -> None:
        """Print a sentence."""
        print(text, file=self._stream, flush=True)

    def end(self) -> None:
        """Nothing is left to undo."""


class BarReporter:
    """A live bar with loss, tokens a second, memory and the time left; for terminals.

    Parameters
    ----------
    stream : TextIO
        A terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._smoothed = _Smoothed()
        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=Console(file=stream),
        )
        self._task: TaskID | None = None
        self._total = 0

    def begin(self, step: int, total: int) -> None:
        """Show the bar."""
        self._total = total
        self._task = self._progress.add_task("training", total=total, completed=step, status="")
        self._progress.start()

    def validating(self, done: int, total: int) -> None:
        """Show how far the validation is, in the place of the word."""
        if self._task is not None:
            self._progress.update(self._task, description=f"validating {done}/{total}")

    def step(self, metrics: StepMetrics) -> None:
        """Move the bar."""
        if self._task is None:
            return
        self._smoothed.add(metrics)
        left = clock((self._total - metrics.step) * self._smoothed.seconds)
        status = (
            f"loss {self._smoothed.loss:.3f} · {self._smoothed.speed:.0f} tok/s · "
            f"{metrics.memory_mib:.0f} MiB · {left} left"
        )
        self._progress.update(
            self._task, completed=metrics.step, description="training", status=status
        )

    def evaluation(self, metrics: EvalMetrics) -> None:
        """Print the validation's result above the bar."""
        self.note(evaluation_line(metrics))
        if self._task is not None:
            self._progress.update(self._task, description="training")

    def note(self, text: str) -> None:
        """Print a sentence above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()


class SilentReporter:
    """Tells nothing; for programs that train without a person watching."""

    def begin(self, step: int, total: int) -> None:
        """Say nothing."""

    def validating(self, done: int, total: int) -> None:
        """Say nothing."""

    def step(self, metrics: StepMetrics) -> None:
        """Say nothing."""

    def evaluation(self, metrics: EvalMetrics) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""


def open_reporter(stream: TextIO) -> Reporter:
    """Give the reporter that suits a stream: a bar on a terminal, else plain lines."""
    return BarReporter(stream) if stream.isatty() else PlainReporter(stream)


def evaluation_line(metrics: EvalMetrics) -> str:
    """Give a validation's result as one line."""
    when = f"after step {metrics.step}" if metrics.step else "before training"
    return (
        f"validation {when}: loss {metrics.eval_loss:.4f}, perplexity {metrics.eval_perplexity:.2f}"
    )


def clock(seconds: float) -> str:
    """Give a duration as 0:07, 12:30 or 3:04:05."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
