"""People see how the training goes, on a terminal and in a pipe."""

from __future__ import annotations

import io
import re

from bitfabric.runtime.metrics import EvalMetrics, StepMetrics
from bitfabric.runtime.progress import BarReporter, PlainReporter, Reporter, clock, open_reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell(reporter: Reporter) -> None:
    reporter.note("data: 12 documents [all good]")
    reporter.begin(0, 100)
    reporter.validating(3, 10)
    reporter.evaluation(EvalMetrics(0, 0.0, 5.0, 148.41, 0.0))
    for step in range(1, 101):
        reporter.step(StepMetrics(step, step / 50, 4.0, 1e-3, 0.5, 200, 400.0, 123.4, step / 2))
    reporter.evaluation(EvalMetrics(100, 2.0, 3.0, 20.09, 50.0))
    reporter.end()


def test_a_pipe_gets_few_plain_lines() -> None:
    stream = io.StringIO()
    reporter = open_reporter(stream)
    assert isinstance(reporter, PlainReporter)
    tell(reporter)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "data: 12 documents [all good]",
        "validation before training: loss 5.0000, perplexity 148.41",
        "step 1/100  epoch 0.02  loss 4.0000  lr 1.0e-03  400 tok/s  123 MiB  0:50 left",
        "step 100/100  epoch 2.00  loss 4.0000  lr 1.0e-03  400 tok/s  123 MiB  0:00 left",
        "validation after step 100: loss 3.0000, perplexity 20.09",
    ]


def test_a_terminal_gets_a_bar_with_loss_speed_memory_and_time_left() -> None:
    stream = Terminal()
    reporter = open_reporter(stream)
    assert isinstance(reporter, BarReporter)
    tell(reporter)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "data: 12 documents [all good]" in text
    assert "100/100" in text
    assert "loss 4.000 · 400 tok/s · 123 MiB · 0:00 left" in text
    assert "validation after step 100: loss 3.0000" in text


def test_durations_are_read_at_a_glance() -> None:
    assert [clock(s) for s in (0, 7.4, 750, 11045, -3)] == [
        *("0:00", "0:07", "12:30", "3:04:05"),
        "0:00",
    ]
