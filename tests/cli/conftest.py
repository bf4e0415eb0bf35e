"""A bundle of nano and a few records, made once for all tests of the command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from .helpers import fabric_json

BIOMEDQA = Path(__file__).resolve().parents[2] / "examples" / "biomedqa"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `fabric compile nano` says: short rows, so that a training step is quick."""
    folder = tmp_path_factory.mktemp("bundle")
    return fabric_json(
        "compile", "nano", "-o", folder / "nano.fabric", "--context", 64, "--lora-rank", 2
    )


@pytest.fixture(scope="session")
def bundle(compiled: dict[str, Any]) -> Path:
    """The folder of that bundle."""
    return Path(compiled["bundle"])


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl and validation.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train.jsonl", 24), ("validation.jsonl", 6)):
        lines = (BIOMEDQA / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:count]))
    return folder


@pytest.fixture(scope="session")
def adapter(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was trained for a few steps."""
    folder = tmp_path_factory.mktemp("adapter") / "out"
    fabric_json(
        "run", bundle, "--train", data / "train.jsonl", "--adapter", folder,
        "--max-steps", 3, "--batch", 2,
    )  # fmt: skip
    return folder


@pytest.fixture
def broken_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle with one byte changed in its weights."""
    copy = tmp_path / "broken.fabric"
    shutil.copytree(bundle, copy)
    weights = max((copy / "weights").iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    return copy
