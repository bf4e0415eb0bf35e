"""`fabric devices`: the processor and what OpenCL's drivers offer, with a verdict on each."""

from __future__ import annotations

import json
from typing import Any

import click.testing
import pytest
from bitfabric.cli import main
from bitfabric.runtime import backends
from bitfabric.targets import FabricError

from ..targets.descriptions import ADRENO_830, CLOVER, H200, MALI_G715, POCL
from .helpers import fabric, fabric_json


def _run(monkeypatch: pytest.MonkeyPatch, devices: Any, *arguments: str) -> click.testing.Result:
    """Run the command on described devices, or on the error that asking for them raises."""

    def answer() -> list[dict[str, Any]]:
        if isinstance(devices, Exception):
            raise devices
        return [{**device, "index": index} for index, device in enumerate(devices)]

    monkeypatch.setattr(backends, "opencl_devices", answer)
    return click.testing.CliRunner().invoke(main, ["devices", *arguments])


def test_the_processor_comes_first_and_real_devices_after_it() -> None:
    found = fabric_json("devices")
    cpu, *others = found["devices"]
    assert cpu["kind"] == "cpu"
    assert cpu["memory_mib"] > cpu["memory_available_mib"] > 0
    if found["opencl_problem"]:
        pytest.skip(found["opencl_problem"]["error"])
    for index, device in enumerate(others):
        assert device["kind"] == "opencl"
        assert device["index"] == index
        assert device["max_buffer"] > 0
        assert device["used"] == (device["target"] is not None)
    shown = fabric("devices").stdout
    assert others[0]["name"] in shown
    assert others[0]["reason"] in shown


def test_each_device_is_shown_with_its_limits_and_target(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _run(monkeypatch, [H200, ADRENO_830, POCL]).stdout
    h200, adreno, pocl = shown.split("\nopencl:")[1:]
    assert "139.8 GiB; 35,789 MiB in one buffer" in h200
    assert "1024 threads, 32 at a time; 48 KiB" in h200
    assert "opencl-nvidia" in h200
    assert "no 16-bit floats" in h200
    assert "shared with the processor" in adreno
    assert "a processor is faster with --target cpu" in pocl


def test_a_refused_device_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _run(monkeypatch, [CLOVER]).stdout
    assert "no: refused: it has OpenCL 1.1 where 1.2 is needed." in shown
    assert "  target  " not in shown.split("opencl:0")[1]


def test_json_has_the_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_ROOT", "/system")
    done = _run(monkeypatch, [MALI_G715, CLOVER], "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    mali, clover = found["devices"][1:]
    assert mali["target"] == "mali-g715"
    assert "buffers above 256 MiB are split" in mali["notes"]
    assert clover["used"] is False
    assert clover["target"] is None
    assert found["opencl_problem"] is None


def test_without_a_driver_the_processor_is_shown_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = FabricError("OpenCL can't be used: no driver.", "Install one.")
    done = _run(monkeypatch, missing)
    assert done.exit_code == 0
    assert "which is what --target cpu means here" in done.stdout
    assert "opencl  none: OpenCL can't be used: no driver." in done.stdout
    assert "fabric doctor" in done.stdout
    found = json.loads(_run(monkeypatch, missing, "--json").stdout.splitlines()[-1])
    assert len(found["devices"]) == 1
    assert found["opencl_problem"]["remedy"] == "Install one."
