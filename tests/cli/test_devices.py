"""`fabric devices`: the processor and what each API's drivers offer, with a verdict on each."""

from __future__ import annotations

import json
from typing import Any

import click.testing
import pytest
from bitfabric.cli import main
from bitfabric.runtime import backends
from bitfabric.targets import APIS, FabricError

from ..targets.cuda_descriptions import H200 as CUDA_H200
from ..targets.descriptions import ADRENO_830, CLOVER, H200, MALI_G715, POCL
from ..targets.metal_descriptions import M4_MAX
from ..targets.vulkan_descriptions import H200 as VULKAN_H200
from ..targets.vulkan_descriptions import LAVAPIPE
from .helpers import fabric, fabric_json

MISSING = FabricError("It can't be used: no driver.", "Install one.")


def _run(
    monkeypatch: pytest.MonkeyPatch,
    opencl: list[dict[str, Any]],
    *arguments: str,
    vulkan: list[dict[str, Any]] | None = None,
    cuda: list[dict[str, Any]] | None = None,
    metal: list[dict[str, Any]] | None = None,
) -> click.testing.Result:
    """Run the command on described devices; where there are none, asking for them fails."""
    there = {kind: [] for kind in APIS} | {"opencl": opencl}
    there |= {"cuda": cuda or [], "metal": metal or [], "vulkan": vulkan or []}

    def answer(kind: str) -> list[dict[str, Any]]:
        if not there[kind]:
            raise MISSING
        return [{**device, "index": index} for index, device in enumerate(there[kind])]

    monkeypatch.setattr(backends, "devices", answer)
    return click.testing.CliRunner().invoke(main, ["devices", *arguments])


def test_the_processor_comes_first_and_real_devices_after_it() -> None:
    found = fabric_json("devices")
    cpu, *others = found["devices"]
    assert cpu["kind"] == "cpu"
    assert cpu["memory_mib"] > cpu["memory_available_mib"] > 0
    if not others:
        pytest.skip(str(found["problems"]))
    for kind in APIS:
        of_kind = [device for device in others if device["kind"] == kind]
        assert (kind in found["problems"]) == (not of_kind)
        for index, device in enumerate(of_kind):
            assert device["index"] == index
            assert device["max_buffer"] > 0
            assert device["used"] == (device["target"] is not None)
    shown = " ".join(fabric("devices").stdout.split())
    for device in others:
        assert device["name"] in shown
        assert device["reason"] in shown


def test_each_device_is_shown_with_its_limits_and_target(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _run(monkeypatch, [H200, ADRENO_830, POCL]).stdout
    h200, adreno, pocl = shown.split("\nopencl:")[1:]
    assert "139.8 GiB; 35,789 MiB in one buffer" in h200
    assert "1024 threads, 32 at a time; 48 KiB" in h200
    assert "opencl-nvidia" in h200
    assert "no 16-bit floats" in h200
    assert "shared with the processor" in adreno
    assert "a processor is faster with --target cpu" in pocl


def test_a_mac_shows_its_device_and_another_computer_says_whose_metal_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = fabric_json("devices")["problems"]["metal"]
    assert problem["error"] == "Metal is Apple's: this computer does not run macOS."
    shown = _run(monkeypatch, [], metal=[M4_MAX]).stdout.split("\nmetal:")[1]
    assert "macOS 15.1; family Apple9" in shown
    assert "works, as Macs with an M4, Pro, Max or Ultra" in shown


def test_every_api_shows_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _run(monkeypatch, [H200], vulkan=[VULKAN_H200, LAVAPIPE], cuda=[CUDA_H200]).stdout
    assert "cuda-sm90" in shown.split("\nopencl:")[0]
    assert "CUDA 13.0; compute capability 9.0" in shown
    first, second = shown.split("\nvulkan:")[1:]
    assert "vulkan-nvidia" in first
    assert "has units for matrices" in first
    assert "NVIDIA 580.159.04; Vulkan 1.4" in first
    assert "where it is named (--device vulkan:1)" in " ".join(second.split())
    assert "opencl-nvidia" in shown.split("\nvulkan:")[0]


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
    assert set(found["problems"]) == set(APIS) - {"opencl"}


def test_without_a_driver_the_processor_is_shown_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = _run(monkeypatch, [])
    assert done.exit_code == 0
    assert "which is what --target cpu means here" in done.stdout
    assert "opencl  none: It can't be used: no driver." in done.stdout
    assert "vulkan  none: It can't be used: no driver." in done.stdout
    assert "fabric doctor" in done.stdout
    found = json.loads(_run(monkeypatch, [], "--json").stdout.splitlines()[-1])
    assert len(found["devices"]) == 1
    assert found["problems"]["opencl"]["remedy"] == "Install one."
