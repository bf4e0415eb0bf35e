"""metrics.jsonl holds each step once, however often the run was interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from bitfabric.runtime.metrics import EvalMetrics, MetricsFile, StepMetrics, Transfer, read_metrics


def step(number: int, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(number, number / 4, loss, 1e-3, 0.5, 100, 1000.0, 50.0, 0.1 * number)


def evaluation(number: int) -> EvalMetrics:
    return EvalMetrics(number, number / 4, 2.0, 7.389, 0.1 * number)


def kept(path: Path) -> list[tuple[int, bool]]:
    return [(entry["step"], "eval_loss" in entry) for entry in read_metrics(path)]


def test_lines_are_there_at_once_and_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.open_after(0, evaluated=-1)
    for entry in (evaluation(0), step(1), step(2), evaluation(2), step(3)):
        file.write(entry)
    assert kept(path) == [(0, True), (1, False), (2, False), (2, True), (3, False)]
    file.close()
    with path.open("ab") as torn:
        torn.write(b'{"step": 4, "lo')
    file.open_after(2, evaluated=0)
    assert kept(path) == [(0, True), (1, False), (2, False)]
    file.write(evaluation(2))
    file.sync()
    assert path.read_bytes().endswith(b"}\n")
    file.close()
    file.open_after(0, evaluated=-1)
    assert kept(path) == []


def test_a_number_that_json_lacks_becomes_null(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.open_after(0, evaluated=-1)
    file.write(step(1, float("nan")))
    file.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: 1 / 0)["loss"] is None


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path / "none")) == []


def test_what_was_read_beside_the_computing_is_told(tmp_path: Path) -> None:
    transfer = Transfer.of(reading=4.0, waiting=1.0, wall=10.0)
    assert (transfer.compute_s, transfer.overlap) == (9.0, 0.75)
    assert Transfer.of(0.0, 0.0, 2.0).overlap == 1.0
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.open_after(0, evaluated=-1)
    file.write(step(1))
    file.write(replace(step(2), transfer=transfer))
    file.close()
    one, two = read_metrics(file.path)
    assert "transfer" not in one
    assert two["transfer"] == {"transfer_s": 4.0, "compute_s": 9.0, "wall_s": 10.0, "overlap": 0.75}
