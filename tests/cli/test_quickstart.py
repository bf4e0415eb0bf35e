"""The quickstart: whom it leaves alone, what it takes up again, and (slow) that it ends well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bitfabric.cli.output import Output
from bitfabric.cli.quickstart import ADAPTER, BUNDLE, MARKER, Story, sparkline
from bitfabric.targets import FabricError

from .helpers import fabric, fabric_json


def made(folder: Path) -> list[Path]:
    """What a quickstart leaves behind, each as one file."""
    files = [folder / BUNDLE / "manifest.json", folder / ADAPTER / "loss.svg"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("from before")
    return files


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = fabric("quickstart", "--output", tmp_path)
    assert done.returncode == 2
    assert "left alone" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["thesis.txt"]


def test_a_file_in_the_folders_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FabricError, match="is a file"):
        Story(Output(), tmp_path / "file", 0).prepare()


def test_an_interrupted_quickstart_is_taken_up_again(tmp_path: Path) -> None:
    Story(Output(), tmp_path, 0).prepare()
    files = made(tmp_path)
    Story(Output(), tmp_path, 0).prepare()
    assert all(file.exists() for file in files)


@pytest.mark.parametrize("finished", [True, False])
def test_a_finished_one_or_one_of_another_seed_is_made_anew(tmp_path: Path, finished: bool) -> None:
    first = Story(Output(), tmp_path, 0)
    first.prepare()
    files = made(tmp_path)
    (tmp_path / "notes.txt").write_text("written by the person, in our folder")
    if finished:
        first.finish()
    Story(Output(), tmp_path, 0 if finished else 1).prepare()
    assert not any(file.exists() for file in files)
    assert (tmp_path / "notes.txt").exists()


def test_a_marker_that_is_no_json_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("{")
    Story(Output(), tmp_path, 0).prepare()
    assert (tmp_path / "train.jsonl").is_file()


def test_the_curve_in_the_terminal_follows_the_losses() -> None:
    assert sparkline([7, 6, 5, 4, 3, 2, 1, 0], 40) == "█▇▆▅▄▃▂▁"
    assert sparkline([4, 4, 4, 0, 0, 0], 2) == "█▁"
    assert sparkline([3.5], 40) == "▁"
    assert sparkline([], 40) == ""


@pytest.mark.slow
def test_the_whole_story(tmp_path: Path) -> None:
    found = fabric_json("quickstart", "--output", "q", cwd=tmp_path)
    assert found["eval_loss"] < 0.95 * found["eval_loss_before"]
    assert found["answer_after"] != found["answer_before"]
    assert (tmp_path / found["adapter"] / "adapter_model.safetensors").is_file()
    assert (tmp_path / found["curve"]).read_text().startswith("<svg")


@pytest.mark.slow
def test_ctrl_c_stops_it_and_the_next_one_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bitfabric.cli", "quickstart", "--output", "q"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "q" / ADAPTER / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.is_file() or metrics.read_text().count("\n") < 4:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # As a terminal does: to every process of the foreground group.
    os.killpg(process.pid, signal.SIGINT)
    assert "saved" in process.communicate(timeout=60)[0]
    assert process.returncode == 130
    bundle = (tmp_path / "q" / BUNDLE / "manifest.json").stat()
    found = fabric_json("quickstart", "--output", "q", cwd=tmp_path)
    assert found["compile"] is None
    assert (tmp_path / "q" / BUNDLE / "manifest.json").stat().st_mtime == bundle.st_mtime
    assert found["eval_loss"] < found["eval_loss_before"]
