"""The whole path on a device, as a person walks it: compile, train, resume, evaluate, write."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..devices import needs
from .helpers import fabric_json

KINDS = [
    pytest.param("opencl", marks=needs("opencl")),
    # lavapipe takes minutes to compile the kernels: CI runs it apart.
    pytest.param("vulkan", marks=(*needs("vulkan"), pytest.mark.slow)),
]
TRAINING = ("--max-steps", 4, "--batch", 2, "--save-every", 1, "--seed", 1, "--epochs", 1)


@pytest.fixture(scope="module", params=KINDS)
def device_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return nano for the device in hand, otherwise as the processor's bundle of these tests."""
    folder = tmp_path_factory.mktemp(request.param)
    return Path(
        fabric_json(
            "compile", "nano", "-o", folder / "nano.fabric", "--context", 64,
            "--lora-rank", 2, "--target", f"{request.param}:auto",
        )["bundle"]
    )  # fmt: skip


def losses(adapter: Path) -> list[float]:
    """Return the loss of every step, as metrics.jsonl has them."""
    lines = (adapter / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def test_nano_learns_resumes_and_writes_as_on_the_processor(
    bundle: Path, device_bundle: Path, data: Path, tmp_path: Path
) -> None:
    train, validation = data / "train.jsonl", data / "validation.jsonl"
    here, there, broken = (tmp_path / name for name in ("here", "there", "broken"))
    fabric_json("run", bundle, "--train", train, "--adapter", here, *TRAINING)
    found = fabric_json("run", device_bundle, "--train", train, "--adapter", there, *TRAINING)
    assert found["steps"] == 4
    assert found["device_memory_mib"] > 5.0
    # Activations on the border of two 8-bit codes fall to either side, as between two processors.
    assert losses(there) == pytest.approx(losses(here), rel=5e-3)

    # A run that is interrupted and resumed ends with the same adapter, bit for bit.
    interrupt_after_a_step(device_bundle, train, broken)
    fabric_json("run", device_bundle, "--train", train, "--adapter", broken, *TRAINING, "--resume")
    name = "adapter_model.safetensors"
    assert (broken / name).read_bytes() == (there / name).read_bytes()

    scores = [
        fabric_json("run", of, "--eval", validation, "--adapter", there)["loss"]
        for of in (bundle, device_bundle)
    ]
    assert scores[1] == pytest.approx(scores[0], rel=5e-3)
    prompt = ("--prompt", "Q: Does aspirin help?\\nA:", "--max-new-tokens", 12)
    assert fabric_json("run", device_bundle, *prompt, "--adapter", there)["tokens"] == 12


def test_two_trainings_at_once_share_the_device(
    device_bundle: Path, data: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("alone", "one", "other")]
    assert started(device_bundle, data / "train.jsonl", folders[0]).wait(timeout=240) == 0
    both = [started(device_bundle, data / "train.jsonl", folder) for folder in folders[1:]]
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    alone, *others = [(folder / "adapter_model.safetensors").read_bytes() for folder in folders]
    assert others == [alone, alone]


def started(bundle: Path, train: Path, adapter: Path) -> subprocess.Popen[bytes]:
    """Start the training in a process of its own."""
    command = [sys.executable, "-m", "bitfabric.cli", "run", bundle, "--train", train]
    return subprocess.Popen(
        [*map(str, command), "--adapter", str(adapter), *map(str, TRAINING)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def interrupt_after_a_step(bundle: Path, train: Path, adapter: Path) -> None:
    """Run the training and send it Ctrl-C once it has taken a step."""
    process = started(bundle, train, adapter)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (adapter / "metrics.jsonl").is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) in (0, 130)
