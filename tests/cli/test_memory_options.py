"""Sizes as people write them, the plan as they see it, and budgets that can't be kept."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from bitfabric.cli.options import Size

from .helpers import fabric, fabric_json

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", 1 << 30),
        ("1.5 gib", 3 << 29),
        ("512MiB", 512 * MIB),
        ("2GB", 2 * 10**9),
        ("900m", 9 * 10**8),
        ("7Ki", 7168),
        ("4096", 4096),
        ("64b", 64),
    ],
)
def test_a_size_is_read_with_and_without_units(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["much", "", "-1GiB", "1TiBs", "1.2.3M"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no size"):
        Size().convert(text, None, None)


def test_the_estimate_fits_the_budget_and_draws_every_row(tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    found = fabric_json(
        "estimate", "random:1B", "--context", 128, "--memory-budget", "400MiB", "--picture", picture
    )
    assert found["peak_memory_mib"] <= 400
    assert found["resident_layers"] is None, "every layer stays where the rest can be smaller"
    rows = [name for name, sizes in found["plan"]["rows"] if any(sizes)]
    texts = [node.text or "" for node in ElementTree.parse(picture).iter() if "text" in node.tag]
    for name in rows:
        assert any(text.startswith(f"{name}:") for text in texts), name
    assert any(f"at most {found['peak_memory_mib']:,.1f} MiB" in text for text in texts)


@pytest.mark.slow
def test_the_picture_has_a_bar_for_each_point_as_long_as_its_sum() -> None:
    run = fabric("estimate", "random:125M", "--context", 64)
    lines = run.stdout[run.stdout.index("Over the step") :].splitlines()[1:]
    bars = {line.strip().rsplit(" ", 1)[0].strip(): line.rsplit(" ", 1)[1] for line in lines[:6]}
    found = fabric_json("estimate", "random:125M", "--context", 64)
    plan = found["plan"]
    assert list(bars) == plan["points"]
    for index, bar in enumerate(bars.values()):
        total = sum(sizes[index] for _, sizes in plan["rows"])
        assert abs(len(bar) - 60 * total / plan["peak"]) <= 1
        assert list(bar) == sorted(bar)


def test_a_budget_that_nothing_fits_names_the_smallest_that_does() -> None:
    failed = fabric("estimate", "random:1B", "--context", 128, "--memory-budget", "64MiB")
    assert failed.returncode == 2
    assert "the budget is 64 MiB" in failed.stderr
    assert "Give --memory-budget" in failed.stderr
