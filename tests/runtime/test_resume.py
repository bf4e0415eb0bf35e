"""A training that is killed, stopped or short of disk goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bitfabric.runtime.adapter import load_adapter
from bitfabric.runtime.batch import Batch
from bitfabric.runtime.checkpoint import ResumeError, find_checkpoint
from bitfabric.runtime.files import FileError
from bitfabric.runtime.interrupt import TrainingInterrupted
from bitfabric.runtime.tensorfile import read_tensors
from bitfabric.runtime.trainer import TrainingResult, configure, train

from .toy import ToyBundle, ToyTrainingEngine

ROOT = Path(__file__).parents[2]
Engine = Callable[[ToyBundle], ToyTrainingEngine]


@pytest.fixture
def settings(train_file: Path, eval_file: Path) -> dict[str, Any]:
    return {
        "train": train_file,
        "eval_data": eval_file,
        "learning_rate": 0.02,
        "batch": 3,
        "accumulate": 2,
        "max_steps": 12,
        "eval_every": 4,
        "save_every": 1,
        "weight_decay": 0.01,
        "seed": 3,
    }


def run(
    folder: Path,
    settings: dict[str, Any],
    engine: Engine = ToyTrainingEngine,
    *,
    resume: bool = True,
    bundle: ToyBundle | None = None,
) -> TrainingResult:
    config = configure({**settings, "adapter": folder}, resume=resume)
    return train(bundle or ToyBundle(), engine, config, resume=resume)


def story(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on how often it was interrupted."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [(e["step"], e.get("loss"), e.get("eval_loss"), e.get("lr")) for e in lines]
    tensors, _ = read_tensors(folder / "checkpoint.safetensors")
    checkpoint = find_checkpoint(folder)
    assert checkpoint is not None
    progress = dataclasses.asdict(checkpoint.progress)
    del progress["train_seconds"]
    return {
        "adapter": (folder / "adapter_model.safetensors").read_bytes(),
        "config": (folder / "adapter_config.json").read_bytes(),
        "losses": losses,
        "state": {name: tensor.tobytes() for name, tensor in tensors.items()},
        "progress": progress,
    }


@pytest.fixture
def uninterrupted(tmp_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    run(tmp_path / "reference", settings, resume=False)
    return story(tmp_path / "reference")


class Crash(BaseException):
    """The process is gone; nothing of it gets to save anything."""


def crashing(at: int, calls: list[int]) -> Engine:
    """An engine that ends everything at its `at`-th micro-batch."""

    class Crashing(ToyTrainingEngine):
        def accumulate(self, batch: Batch, inverse_count: float, seed: int) -> float:
            calls.append(1)
            if len(calls) == at:
                raise Crash
            return super().accumulate(batch, inverse_count, seed)

    return Crashing


@pytest.mark.parametrize("save_every", [1, 5, 0])
def test_a_crash_in_any_micro_step_changes_nothing(
    tmp_path: Path, settings: dict[str, Any], uninterrupted: dict[str, Any], save_every: int
) -> None:
    settings["save_every"] = save_every
    for at in range(1, 31, 2):
        folder = tmp_path / f"at-{at}"
        with pytest.raises(Crash):
            run(folder, settings, crashing(at, []))
        run(folder, settings)
        assert story(folder) == uninterrupted


# Forks in a process of its own, which has no threads.
DYING = """
import json, os, sys
from pathlib import Path
from bitfabric.runtime.trainer import configure, train
from tests.runtime.toy import ToyBundle, ToyTrainingEngine

settings, replace = json.loads(sys.argv[1]), os.replace

def dying(source, destination):
    global left
    left -= 1
    if left == 0:
        if count % 2 == 0:
            replace(source, destination)
        os._exit(9)
    replace(source, destination)

for count in range(1, 60):
    left = count
    child = os.fork()
    if child == 0:
        os.replace = dying
        config = configure({**settings, "adapter": f"{sys.argv[2]}/{count}"})
        train(ToyBundle(), ToyTrainingEngine, config)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(count - 1)
        break
"""


def test_dying_at_any_write_changes_nothing(
    tmp_path: Path, settings: dict[str, Any], uninterrupted: dict[str, Any]
) -> None:
    """The process ends, without a word, just before or just after a file takes its name."""
    settings = {**settings, "save_every": 3}
    text = json.dumps(settings, default=str)
    command = [sys.executable, "-c", DYING, text, str(tmp_path / "died")]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(output) > 10
    for count in range(1, int(output) + 1):
        run(tmp_path / "died" / str(count), settings)
        assert story(tmp_path / "died" / str(count)) == uninterrupted


PROGRAM = """
import json, sys, time
from pathlib import Path
from bitfabric.runtime.interrupt import TrainingInterrupted
from bitfabric.runtime.trainer import configure, train
from tests.runtime.toy import ToyBundle, ToyTrainingEngine

class Slow(ToyTrainingEngine):
    def accumulate(self, *arguments):
        time.sleep(0.004)
        return super().accumulate(*arguments)

try:
    train(ToyBundle(), Slow, configure(json.loads(sys.argv[1]), resume=True), resume=True)
except TrainingInterrupted as error:
    print(error)
    sys.exit(error.exit_code)
"""


def start(folder: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    text = json.dumps({**settings, "adapter": folder}, default=str)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, text], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)


def test_sigkill_again_and_again_changes_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {**settings, "max_steps": 60, "save_every": 2}
    run(tmp_path / "reference", settings, resume=False)
    folder = tmp_path / "killed"
    chance = random.Random(5)
    killed = 0
    for target in (3, 17, 34, 50):
        process = start(folder, settings)
        wait_for_lines(folder / "metrics.jsonl", target, process)
        time.sleep(chance.random() * 0.03)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == 4
    last = start(folder, settings)
    last.communicate()
    assert last.returncode == 0
    assert story(folder) == story(tmp_path / "reference")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_tells_how_to_go_on_and_changes_nothing(
    tmp_path: Path, settings: dict[str, Any], number: signal.Signals
) -> None:
    settings = {**settings, "max_steps": 60, "save_every": 0}
    run(tmp_path / "reference", settings, resume=False)
    folder = tmp_path / "stopped"
    process = start(folder, settings)
    wait_for_lines(folder / "metrics.jsonl", 20, process)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "--resume" in output
    checkpoint = find_checkpoint(folder)
    assert checkpoint is not None
    assert f"stopped after step {checkpoint.progress.step};" in output
    assert 15 <= checkpoint.progress.step < 60
    assert (folder / "adapter_model.safetensors").exists()
    assert (folder / "loss.svg").exists()
    run(folder, settings)
    assert story(folder) == story(tmp_path / "reference")


def test_ctrl_c_before_the_first_step_and_in_a_validation(
    tmp_path: Path, settings: dict[str, Any], uninterrupted: dict[str, Any]
) -> None:
    for at in (1, 2, 3):
        calls: list[int] = []

        class Stopped(ToyTrainingEngine):
            def evaluate(self, batch: Batch, calls: list[int] = calls, at: int = at) -> float:
                calls.append(1)
                if len(calls) == at:
                    os.kill(os.getpid(), signal.SIGINT)
                return super().evaluate(batch)

        folder = tmp_path / f"evaluation-{at}"
        with pytest.raises(TrainingInterrupted):
            run(folder, settings, Stopped)
        run(folder, settings)
        assert story(folder) == uninterrupted


def test_a_second_ctrl_c_insists(tmp_path: Path, settings: dict[str, Any]) -> None:
    class Stopped(ToyTrainingEngine):
        def accumulate(self, batch: Batch, inverse_count: float, seed: int) -> float:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return 0.0

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", settings, Stopped)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_loses_nothing(
    tmp_path: Path, settings: dict[str, Any], uninterrupted: dict[str, Any]
) -> None:
    folder = tmp_path / "full"
    with pytest.raises(Crash):
        run(folder, settings, crashing(20, []))
    checkpoint = folder / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Enough for the metrics and not for a checkpoint.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 100, limits[1]))
    try:
        with pytest.raises(FileError, match=r"checkpoint.* could not be written") as told:
            run(folder, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "--resume" in told.value.remedy
    assert checkpoint.read_bytes() == before
    assert load_adapter(str(folder), ToyBundle()).rank == 4
    assert not list(folder.glob(".*"))
    run(folder, settings)
    assert story(folder) == uninterrupted


def test_resume_starts_where_there_is_nothing_and_ends_where_all_is_done(
    tmp_path: Path, settings: dict[str, Any], uninterrupted: dict[str, Any]
) -> None:
    first = run(tmp_path / "new", settings, resume=True)
    assert story(tmp_path / "new") == uninterrupted
    again = run(tmp_path / "new", settings, resume=True)
    assert story(tmp_path / "new") == uninterrupted
    fixed = ("steps", "tokens", "train_loss", "eval_loss_before", "eval_loss", "best_step")
    assert all(getattr(first, name) == getattr(again, name) for name in fixed)


def test_what_is_not_said_again_stays_as_it_was(
    tmp_path: Path, settings: dict[str, Any], uninterrupted: dict[str, Any]
) -> None:
    folder = tmp_path / "short"
    with pytest.raises(Crash):
        run(folder, settings, crashing(20, []))
    run(folder, {"train": settings["train"]})
    assert story(folder) == uninterrupted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.01),
        ("batch", 2),
        ("seed", 4),
        ("scheduler", "linear"),
        ("clip_norm", 0.5),
        ("pack", True),
    ],
)
def test_another_setting_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], name: str, value: Any
) -> None:
    run(tmp_path / "out", settings)
    with pytest.raises(ResumeError, match=rf"another --{name.replace('_', '-')}: it was .* now"):
        run(tmp_path / "out", {**settings, name: value})


def test_other_data_or_another_bundle_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], uninterrupted: dict[str, Any]
) -> None:
    folder = tmp_path / "reference"
    other = dataclasses.replace(ToyBundle(), manifest={"model": {"name": "toy"}, "target": "gpu"})
    with pytest.raises(ResumeError, match="another bundle"):
        run(folder, settings, bundle=other)
    with pytest.raises(ResumeError, match=r"another number of steps.*it was 12 and is now 13"):
        run(folder, {**settings, "max_steps": 13})
    for name, words in (("train", "another training data"), ("eval_data", "validation data")):
        path = Path(settings[name])
        content = path.read_bytes()
        path.write_bytes(content + b'{"text": "more"}\n')
        with pytest.raises(ResumeError, match=words):
            run(folder, settings)
        path.write_bytes(content)
    assert story(folder) == uninterrupted


def test_with_a_constant_rate_a_finished_run_can_be_prolonged(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {**settings, "scheduler": "constant", "warmup_ratio": 0.0, "eval_data": ""}
    run(tmp_path / "at-once", settings)
    run(tmp_path / "in-two", {**settings, "max_steps": 5})
    run(tmp_path / "in-two", settings)
    one, two = story(tmp_path / "at-once"), story(tmp_path / "in-two")
    assert one == two


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = tmp_path / "out"
    run(folder, settings)
    path = folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FileError, match="damaged"):
        run(folder, settings)
