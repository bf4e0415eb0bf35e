"""`fabric device serve` and `--device rpc://…`: the same adapter and text as without a device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from ..runtime.remote_tools import Device, free_port
from .helpers import environment, fabric, fabric_json
from .test_thin import HEAVY, PROGRAM

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="serving needs a fork of a socket")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    with Device(tmp_path_factory.mktemp("store"), "--name", "pixel") as device:
        yield device


def url(device: Device) -> str:
    return f"rpc://127.0.0.1:{device.port}/{device.key}"


def train(bundle: Path, data: Path, out: Path, *more: Any) -> dict[str, Any]:
    return fabric_json(
        "run", bundle, "--train", data / "train.jsonl", "--eval-data", data / "validation.jsonl",
        "--adapter", out, "--max-steps", 2, "--batch", 2, "--eval-every", 2, "--seed", 3, *more,
    )  # fmt: skip


@pytest.mark.slow
def test_run_trains_and_writes_there_as_here(
    bundle: Path, data: Path, tmp_path: Path, device: Device
) -> None:
    there = train(bundle, data, tmp_path / "there", "--device", url(device))
    here = train(bundle, data, tmp_path / "here")
    for name in ("train_loss", "eval_loss_before", "eval_loss", "tokens"):
        assert there[name] == here[name], name
    adapters = [
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("there", "here")
    ]
    assert adapters[0].keys() == adapters[1].keys()
    for name, array in adapters[1].items():
        assert adapters[0][name].tobytes() == array.tobytes(), name
    writing = ("run", bundle, "--prompt", "Q:", "--max-new-tokens", 6)
    adapter = ("--adapter", tmp_path / "there")
    found = fabric_json(*writing, *adapter, "--device", url(device))
    assert found["text"] == fabric_json(*writing, *adapter)["text"]


def test_a_run_that_computes_elsewhere_needs_no_compiler(
    bundle: Path, data: Path, device: Device
) -> None:
    arguments = ["run", str(bundle), "--eval", "validation.jsonl", "--device", url(device)]
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{PROGRAM}", *arguments],
        cwd=data, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, libraries, heavy = done.stdout.splitlines()[-1].split("|")
    assert status.strip() == "0", done.stderr
    assert "libtvm_compiler.so" not in libraries
    assert heavy.split() == []


def test_failures_are_two_lines(bundle: Path) -> None:
    for device, cause in (
        (f"rpc://127.0.0.1:{free_port()}", "Nothing listens at 127.0.0.1"),
        ("rpc://", "does not name a device"),
    ):
        done = fabric("run", bundle, "--prompt", "Q:", "--device", device)
        assert done.returncode == 2
        assert cause in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--tracker", "127.0.0.1:9190"), "--tracker needs a --key"),
        (("--tracker", "nowhere", "--key", "k"), "not of the form HOST:PORT"),
        (("--key", "a/b"), "can't be a device's key"),
        (("--host", "192.0.2.1"), "192.0.2.1:9190 can't be listened at"),
    ],
)
def test_serve_refuses(arguments: tuple[str, ...], cause: str) -> None:
    done = fabric("device", "serve", *arguments)
    assert done.returncode == 2
    assert cause in done.stderr


def test_serve_keeps_to_this_machine_unless_it_is_told_and_warns_then() -> None:
    for host, warned in (((), False), (("--host", "0.0.0.0"), True)):
        command = [sys.executable, "-m", "bitfabric.cli", "device", "serve", "--port", "0", *host]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment()
        ) as server:
            assert server.stdout is not None
            said = server.stdout.readline()
            while "Serving at" not in said.splitlines()[-1]:
                said += server.stdout.readline()
            server.kill()
        assert ("can run any program on this device" in said) == warned
        assert ("Serving at 127.0.0.1:" in said) == (not warned)
