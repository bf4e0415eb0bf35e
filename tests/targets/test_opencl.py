"""The OpenCL targets: their code fits the devices they are named for, and TVM takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tvm
from bitfabric.runtime.backends import devices
from bitfabric.targets import FabricError, Target, get_target, host_triple, list_targets
from bitfabric.targets.opencl import ADRENO_WINDOW, ANDROID, AUTO, TARGETS, WINDOW, from_device

from ..schedules.kernel_harness import every_gpu, through
from .descriptions import ADRENO_740, ADRENO_830, H200, MALI_G715, POCL, UHD_730
from .one_kernel import compare_a_norm

KIB, MIB = 1 << 10, 1 << 20
FEATURES = {"fp16", "shared_memory", "int8_dot", "subgroup"}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_tvm_takes_every_target_and_its_limits(target: Target) -> None:
    taken = tvm.target.Target(target.options)
    assert taken.kind.name == "opencl"
    assert taken.attrs["max_threads_per_block"] == target.limits.max_threads
    assert taken.attrs["max_shared_memory_per_block"] == target.limits.shared_bytes
    # Anything above 1 would let a barrier be left out between threads of a warp.
    assert taken.attrs["thread_warp_size"] == 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_limits_are_such_as_kernels_and_windows_need(target: Target) -> None:
    limits = target.limits
    assert target.features <= FEATURES
    assert limits.max_threads & (limits.max_threads - 1) == 0
    assert limits.max_buffer % limits.alignment == 0
    assert limits.max_buffer < 2**31
    assert limits.shared_bytes >= 32 * KIB
    assert (target.host == ANDROID) == target.name.startswith(("adreno", "mali"))


def test_mali_has_no_shared_memory_worth_using_and_adreno_small_windows() -> None:
    for target in TARGETS:
        if target.name.startswith("mali"):
            assert "shared_memory" not in target.features
        if target.name.startswith("adreno"):
            assert target.limits.max_buffer == 128 * MIB


@pytest.mark.parametrize(
    ("device", "features", "buffer", "threads", "shared"),
    [
        (ADRENO_830, FEATURES, ADRENO_WINDOW, 1024, 32 * KIB),
        (ADRENO_740, FEATURES, ADRENO_WINDOW, 1024, 32 * KIB),
        (MALI_G715, {"fp16", "int8_dot", "subgroup"}, WINDOW, 1024, 32 * KIB),
        (H200, {"shared_memory", "int8_dot", "subgroup"}, WINDOW, 1024, 48 * KIB),
        (UHD_730, FEATURES, WINDOW, 512, 64 * KIB),
        (POCL, set(), WINDOW, 1024, 64 * KIB),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_device_makes_its_own_target(
    device: dict[str, Any], features: set[str], buffer: int, threads: int, shared: int
) -> None:
    target = from_device(device)
    assert target.name == AUTO
    assert target.host is None
    assert target.features == features
    assert target.limits.max_buffer == buffer
    assert target.limits.max_threads == threads
    assert target.limits.shared_bytes == shared
    assert target.limits.alignment == device["alignment"]
    assert device["name"] in target.description


def test_threads_that_run_together_are_known_where_there_is_one_size_of_them() -> None:
    assert from_device(H200).limits.subgroup == 32
    assert from_device(UHD_730).limits.subgroup == 0
    assert from_device(POCL).limits.subgroup == 0


def test_odd_sizes_of_a_device_are_rounded_down() -> None:
    target = from_device({**UHD_730, "max_threads": 448, "max_buffer": 300 * MIB + 77})
    assert target.limits.max_threads == 256
    assert target.limits.max_buffer == 300 * MIB


def test_auto_needs_a_device() -> None:
    with pytest.raises(FabricError, match="made from a device"):
        get_target(AUTO)
    assert get_target(AUTO, H200) == from_device(H200)
    assert AUTO not in [target.name for target in list_targets()]


def test_a_misspelt_target_is_told_its_neighbour() -> None:
    with pytest.raises(FabricError, match="adrano-830") as told:
        get_target("adrano-830")
    assert "adreno-830" in told.value.remedy


def test_another_host() -> None:
    target = get_target("opencl").with_host("aarch64-linux-android")
    assert host_triple(target) == "aarch64-linux-android"
    assert replace(target, host=None) == get_target("opencl")
    for wrong in ("android", "aarch64 linux", "aarch64-", ""):
        with pytest.raises(FabricError, match="triple"):
            get_target("opencl").with_host(wrong)
    with pytest.raises(FabricError, match="processor itself"):
        get_target("cpu").with_host("aarch64-linux-android")


FAMILIES = ("opencl", "opencl-nvidia", "intel-gpu", "opencl-amd", "adreno-830", "mali-g715", AUTO)


@every_gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_a_kernel_of_each_family_computes_rightly(target: Target, name: str) -> None:
    layout = get_target(name, devices("opencl")[0])
    chosen = through(target.device, layout).with_host(host_triple(target))
    compare_a_norm(chosen)
