"""The Metal targets: TVM takes them, Macs get the one that fits, and the rest are refused."""

from __future__ import annotations

from typing import Any

import pytest
import tvm
from bitfabric.targets import Target, get_target, host_triple, list_targets
from bitfabric.targets.metal import ARGUMENTS, AUTO, IOS, MACOS, METAL, TARGETS
from bitfabric.targets.metal_device import METAL_API

from .descriptions import H200
from .metal_descriptions import A17, INTEL_MAC, M1, M4_MAX, M9, SMALL

judge, shortfalls = METAL_API.judge, METAL_API.shortfalls


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_tvm_takes_every_target_and_its_limits(target: Target) -> None:
    taken = tvm.target.Target(target.options)
    assert taken.kind.name == "metal"
    assert taken.attrs["max_threads_per_block"] == target.limits.max_threads == 1024
    assert taken.attrs["max_shared_memory_per_block"] == target.limits.shared_bytes == 32768
    assert taken.attrs["max_function_args"] == ARGUMENTS
    assert taken.attrs["thread_warp_size"] == 1
    assert host_triple(target) == (IOS if target.name.startswith("ios") else MACOS)
    assert target in list_targets()


@pytest.mark.parametrize(
    ("device", "target"),
    [(M1, "metal-m1"), (M4_MAX, "metal-m4"), (M9, "metal"), (A17, "ios-a17"), (SMALL, AUTO)],
)
def test_a_device_gets_the_narrowest_target(device: dict[str, Any], target: str) -> None:
    verdict = judge(device, android=False)
    assert (verdict.used, verdict.target) == (True, target)
    assert "has units for matrices" in verdict.notes


def test_what_is_not_apples_own_is_refused() -> None:
    verdict = judge(INTEL_MAC)
    assert not verdict.used
    assert "it is of none of Apple's families from Apple7 on" in verdict.reason


def test_a_device_takes_the_target_that_is_made_from_it() -> None:
    for device in (M1, SMALL):
        target = get_target(AUTO, device)
        assert shortfalls(target, device) == []
        assert target.limits.max_buffer <= device["max_buffer"]
        assert target.features == METAL.features
    assert get_target(AUTO, SMALL).limits.max_buffer == 768 << 20


def test_code_that_asks_for_more_is_told_what_is_missing() -> None:
    assert shortfalls(METAL, SMALL) == ["has buffers of 768 MiB where the code has 1024"]
    (wide,) = shortfalls(METAL, {**M1, "subgroup_sizes": [64, 64]})
    assert wide == "runs 64 threads together where the code is for 32"
    assert judge({**H200, "families": []}).used is False
