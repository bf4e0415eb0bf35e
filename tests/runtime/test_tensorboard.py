"""What `--log-dir` writes, as TensorBoard itself reads it; and the sentence where it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bitfabric.runtime.tensorboard import EventFile
from bitfabric.targets import FabricError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def test_scalars_are_read_back_with_their_steps(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "logs")
    events.write(1, {"train/loss": 2.5, "train/lr": 1e-3})
    events.write(70_000, {"train/loss": 1.25})
    events.close()
    assert scalars(tmp_path / "logs", "train/loss") == [(1, 2.5), (70_000, 1.25)]
    assert scalars(tmp_path / "logs", "train/lr") == [(1, pytest.approx(1e-3))]


def test_a_resumed_run_replaces_the_steps_it_does_again(tmp_path: Path) -> None:
    first = EventFile(tmp_path)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    path.rename(tmp_path / "events.out.tfevents.0000000001.first")  # sorts before what follows
    again = EventFile(tmp_path, purge_from=3)
    again.write(3, {"loss": 30.0})
    again.close()
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_without_tensorboard_the_remedy_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "tensorboard":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(FabricError, match=r"bitfabric\[tensorboard\]"):
        EventFile(tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
