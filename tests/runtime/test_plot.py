"""The picture of the loss curve shows what the metrics say."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from bitfabric.runtime.plot import HEIGHT, WIDTH, number, plot_losses, smoothed, thinned, ticks

SVG = "{http://www.w3.org/2000/svg}"


def entries(steps: int, every: int) -> list[dict[str, Any]]:
    train = [{"step": s, "loss": 2 + 4 / (1 + s / 9)} for s in range(1, steps + 1)]
    return train + [{"step": s, "eval_loss": 3.0 - s / steps} for s in range(0, steps + 1, every)]


def draw(tmp_path: Path, values: list[dict[str, Any]], title: str = "x") -> ElementTree.Element:
    assert plot_losses(values, tmp_path / "loss.svg", title)
    return ElementTree.parse(tmp_path / "loss.svg").getroot()


@pytest.mark.parametrize("steps", [1, 2, 7, 300, 5000])
def test_everything_lies_within_the_picture(tmp_path: Path, steps: int) -> None:
    root = draw(tmp_path, entries(steps, max(1, steps // 5)))
    circles = root.findall(f"{SVG}circle")
    for circle in circles:
        assert 0 <= float(circle.get("cx", "nan")) <= WIDTH
        assert 0 <= float(circle.get("cy", "nan")) <= HEIGHT
    texts = ["".join(text.itertext()) for text in root.findall(f"{SVG}text")]
    assert {"training", "validation", "optimizer step", "loss (nats per token)"} <= set(texts)
    assert min(steps, 300) <= len(circles) <= 620
    assert (tmp_path / "loss.svg").stat().st_size < 120_000


def test_the_title_is_escaped_and_the_summary_is_right(tmp_path: Path) -> None:
    root = draw(tmp_path, entries(10, 5), "a <b> & 'c'")
    texts = ["".join(text.itertext()) for text in root.findall(f"{SVG}text")]
    assert texts[0] == "a <b> & 'c'"
    assert texts[1].startswith("10 steps, training loss ends at 3.")
    assert texts[1].endswith("validation from 3.000 to 2.000 at best")


def test_without_a_number_there_is_no_picture(tmp_path: Path) -> None:
    assert not plot_losses([], tmp_path / "loss.svg", "x")
    assert not plot_losses([{"step": 1, "loss": None}], tmp_path / "loss.svg", "x")
    assert not (tmp_path / "loss.svg").exists()
    root = draw(tmp_path, [{"step": 0, "eval_loss": 2.5}])
    assert len(root.findall(f"{SVG}circle")) == 1


def test_smoothing_follows_a_line_without_lag() -> None:
    line = [(float(step), 5 - 0.01 * step) for step in range(200)]
    for (_, expected), (_, actual) in zip(line, smoothed(line), strict=True):
        assert actual == pytest.approx(expected)
    noisy = [(step, loss + 0.1 * (-1) ** int(step)) for step, loss in line]
    worst = max(
        abs(a - b) for (_, a), (_, b) in zip(line[5:-5], smoothed(noisy)[5:-5], strict=True)
    )
    assert worst < 0.02


def test_many_points_are_thinned_by_their_means() -> None:
    points = [(float(step), float(step)) for step in range(10_000)]
    few = thinned(points)
    assert len(few) <= 600
    assert sum(y for _, y in few) / len(few) == pytest.approx(4999.5, rel=0.01)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 198), (2.13, 2.19), (0.001, 40000), (3, 9)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    found = ticks(low, high, 7)
    assert 3 <= len(found) <= 8
    assert all(low - 1e-9 <= value <= high * (1 + 1e-9) for value in found)
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6
    assert len({number(value, found) for value in found}) == len(found)
