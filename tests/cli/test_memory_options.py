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
    assert 0 < found["resident_layers"] < 24
    assert found["gradients"] == "all"
    rows = [name for name, sizes in found["plan"]["rows"] if any(sizes)]
    texts = [node.text or "" for node in ElementTree.parse(picture).iter() if "text" in node.tag]
    for name in rows:
        assert any(text.startswith(f"{name}:") for text in texts), name
    assert any(f"at most {found['peak_memory_mib']:,.1f} MiB" in text for text in texts)


def test_a_budget_that_nothing_fits_names_the_smallest_that_does() -> None:
    failed = fabric("estimate", "random:1B", "--context", 128, "--memory-budget", "64MiB")
    assert failed.returncode == 2
    assert "the budget is 64 MiB" in failed.stderr
    assert "Give --memory-budget" in failed.stderr
