"""`fabric targets`, and the target that --target chooses."""

from __future__ import annotations

from typing import Any

import pytest
from bitfabric.cli import targets as command
from bitfabric.runtime import device as runtime_device
from bitfabric.targets import FabricError, get_target, list_targets

from ..targets.descriptions import CLOVER, H200, POCL
from ..targets.vulkan_descriptions import H200 as VULKAN_H200
from ..targets.vulkan_descriptions import LAVAPIPE
from .helpers import fabric, fabric_json


def test_every_target_is_listed_with_its_family_and_limits() -> None:
    found = {target["name"]: target for target in fabric_json("targets")["targets"]}
    assert list(found) == [target.name for target in list_targets()]
    adreno = found["adreno-830"]
    assert adreno["family"] == "gpu"
    assert adreno["device"] == "opencl"
    assert adreno["host"] == "aarch64-linux-android"
    assert adreno["limits"]["max_buffer"] == 128 << 20
    assert adreno["features"] == sorted(adreno["features"])
    assert found["cpu-avx2"]["limits"] is None
    shown = fabric("targets").stdout
    for name in found:
        assert name in shown
    line = next(line for line in shown.splitlines() if line.startswith("mali-g715"))
    assert "256 MiB" in line
    assert "1024" in line


def _with_devices(monkeypatch: pytest.MonkeyPatch, devices: list[dict[str, Any]]) -> None:
    monkeypatch.setattr(runtime_device, "devices", lambda kind: devices)


def test_auto_is_the_first_device_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FABRIC_DEVICE", raising=False)
    _with_devices(monkeypatch, [CLOVER, {**H200, "index": 1}, {**POCL, "index": 2}])
    assert "H200" in command.chosen_target("opencl:auto").description
    monkeypatch.setenv("FABRIC_DEVICE", "epyc")
    assert "EPYC" in command.chosen_target("opencl:auto").description


def test_auto_without_a_device_that_works_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FABRIC_DEVICE", raising=False)
    _with_devices(monkeypatch, [CLOVER])
    with pytest.raises(FabricError, match=r"Radeon.*OpenCL 1\.1") as told:
        command.chosen_target("opencl:auto")
    assert "--target cpu" in told.value.remedy


def test_a_processor_that_poses_as_a_vulkan_device_has_to_be_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FABRIC_DEVICE", raising=False)
    _with_devices(monkeypatch, [VULKAN_H200, {**LAVAPIPE, "index": 1}])
    assert "H200" in command.chosen_target("vulkan:auto").description
    _with_devices(monkeypatch, [LAVAPIPE])
    for named in ("", "vulkan"):
        monkeypatch.setenv("FABRIC_DEVICE", named)
        with pytest.raises(FabricError, match=r"llvmpipe.*, which is the processor") as told:
            command.chosen_target("vulkan:auto")
        assert "--device vulkan:0" in told.value.remedy
    for named in ("vulkan:0", "0", "LLVMpipe", "vulkan:llvm"):
        monkeypatch.setenv("FABRIC_DEVICE", named)
        assert "llvmpipe" in command.chosen_target("vulkan:auto").description
    monkeypatch.setenv("FABRIC_DEVICE", "opencl:0")
    with pytest.raises(FabricError, match="no vulkan device named 'opencl:0'"):
        command.chosen_target("vulkan:auto")


def test_other_names_are_the_registrys() -> None:
    assert command.chosen_target("vulkan-amd") == get_target("vulkan-amd")
