"""The README's numbers are those that the programs printed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "bench" / "readme_tables.py"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tables", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_says_what_the_results_say() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_number_that_was_changed_by_hand_is_put_right(tables: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| decode | "))
    changed = text.replace(row, "| decode | 9,999 tokens/s | 9,999 tokens/s |")
    assert changed != text
    assert tables.filled(changed) == text


def test_marks_that_are_missing_are_an_error(tables: ModuleType) -> None:
    with pytest.raises(ValueError, match="no marks of the table"):
        tables.filled("# a README without tables\n")


def test_results_of_both_forms_are_read(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "old.txt").write_text(
        "1B, LoRA rank 8 on every module, 1 x 128, one GPU\n"
        "  LoRA training, tokens/s       5361.4     199.0   26.94\n"
        "  training peak memory, MiB      445.1    1047.0    0.43\n"
    )
    old = tables.figures("old")
    assert old == {
        ("1B", "train"): (5361.4, 199.0, None),
        ("1B", "memory"): (445.1, 1047.0, None),
    }
    result = {"model": "random:1B", "work": "train", "tokens_per_s": 7.0, "peak_memory_mib": 8.0}
    (tmp_path / "old.json").write_text(json.dumps([result]))
    assert tables.figures("old") == {
        ("1B", "train"): (7.0, None, None),
        ("1B", "memory"): (8.0, None, None),
    }
    other = {"tokens_per_s": 2.0, "peak_memory_mib": 16.0}
    (tmp_path / "old.json").write_text(json.dumps([{**result, "against": other, "ratio": 3.6}]))
    assert tables.figures("old")["1B", "train"] == (7.0, 2.0, 3.6)
