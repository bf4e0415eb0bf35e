"""The Vulkan targets: TVM takes them, devices get the one that fits, and the rest are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tvm
from bitfabric.runtime.backends import devices
from bitfabric.targets import Target, get_target, list_targets, this_host
from bitfabric.targets.device_api import WINDOW
from bitfabric.targets.target import MatrixUnit
from bitfabric.targets.vulkan import ADDRESS_KEY, AUTO, SMALL_WINDOW, TARGETS, from_device
from bitfabric.targets.vulkan_device import VULKAN_API

from ..devices import missing
from .one_kernel import compare_a_norm
from .vulkan_descriptions import (
    ADRENO_750,
    ARC_A770,
    GTX_1650,
    H200,
    LAVAPIPE,
    MALI_G720,
    MIB,
    RX_580,
    RX_5700,
)

KIB = 1 << 10
ALL = (ADRENO_750, ARC_A770, GTX_1650, H200, LAVAPIPE, MALI_G720, RX_580, RX_5700)
FEATURES = {"fp16", "shared_memory", "int8_dot", "subgroup", "buffer_address", "small_halves"}
judge, shortfalls = VULKAN_API.judge, VULKAN_API.shortfalls


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_tvm_takes_every_target_and_its_limits(target: Target) -> None:
    taken = tvm.target.Target(target.options)
    assert taken.kind.name == "vulkan"
    assert taken.attrs["max_threads_per_block"] == target.limits.max_threads
    assert taken.attrs["max_shared_memory_per_block"] == target.limits.shared_bytes
    assert (ADDRESS_KEY in taken.keys) == ("buffer_address" in target.features)
    assert {"vulkan", "gpu"} <= set(taken.keys)
    # Anything above 1 would let a barrier be left out between threads of a subgroup.
    assert taken.attrs["thread_warp_size"] == 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_limits_are_such_as_kernels_and_windows_need(target: Target) -> None:
    limits = target.limits
    assert target.features <= FEATURES
    assert limits.max_threads & (limits.max_threads - 1) == 0
    assert limits.max_buffer % limits.alignment == 0
    # What a descriptor reaches on every device; addresses reach as far as int32 counts.
    assert limits.max_buffer <= (WINDOW if "buffer_address" in target.features else SMALL_WINDOW)
    assert limits.shared_bytes >= 32 * KIB
    assert (target.host is not None) == target.name.endswith("-vulkan")
    assert target.options["supports_cooperative_matrix"] == bool(target.matrices)


@pytest.mark.parametrize(
    ("device", "lacking", "buffer", "threads", "shared"),
    [
        (H200, set(), WINDOW, 1024, 48 * KIB),
        (GTX_1650, set(), WINDOW, 1024, 48 * KIB),
        (RX_580, {"fp16"}, WINDOW, 1024, 64 * KIB),
        (ARC_A770, set(), WINDOW - KIB, 1024, 32 * KIB),
        (LAVAPIPE, {"shared_memory", "int8_dot"}, SMALL_WINDOW, 1024,
         32 * KIB),
        (MALI_G720, {"shared_memory"}, WINDOW, 1024, 32 * KIB),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_device_makes_its_own_target(
    device: dict[str, Any], lacking: set[str], buffer: int, threads: int, shared: int
) -> None:
    target = from_device(device)
    assert target.name == AUTO
    assert target.host is None
    assert target.features == FEATURES - lacking
    assert target.limits.max_buffer == buffer
    assert target.limits.max_threads == threads
    assert target.limits.shared_bytes == shared
    assert device["name"] in target.description
    assert get_target(AUTO, device) == target
    assert AUTO not in [known.name for known in list_targets()]


def test_threads_that_run_together_are_known_where_there_is_one_size_of_them() -> None:
    assert from_device(H200).limits.subgroup == 32
    assert from_device(RX_580).limits.subgroup == 64
    assert from_device(RX_5700).limits.subgroup == 0


def test_a_device_gets_the_largest_of_its_matrix_units() -> None:
    assert from_device(GTX_1650).matrices == from_device(LAVAPIPE).matrices == ()
    assert from_device(H200).matrices == get_target("vulkan-nvidia").matrices
    small, large, odd = ([*sides, "s8", "s8", "s32", "s32"] for sides in
                         ((8, 8, 16), (16, 16, 16), (16, 16, 48)))  # fmt: skip
    bytes_alone = from_device({**H200, "matrices": [small, large, odd]})
    assert bytes_alone.matrices == (MatrixUnit(16, 16, 16, "int8", "int32"),)
    assert shortfalls(bytes_alone, H200) == [
        "has no units for 16×16×16 matrices of int8, which the code uses"
    ]


def test_an_old_device_gets_no_more_than_it_has() -> None:
    old = {**RX_580, "vulkan": "1.1.92", "features": [], "max_threads": 1792}
    target = from_device(old)
    assert target.features == {"shared_memory", "int8_dot"}
    assert target.limits.max_threads == 1024
    assert not target.options["supports_16bit_buffer"]
    assert not target.options["supports_integer_dot_product"]
    assert shortfalls(target, old) == []


@pytest.mark.parametrize("device", ALL, ids=lambda device: device["name"])
def test_a_target_made_from_a_device_fits_it(device: dict[str, Any]) -> None:
    assert shortfalls(from_device(device), device) == []
    assert shortfalls(get_target("vulkan"), device) == []


@pytest.mark.parametrize(
    ("device", "android", "target"),
    [
        (H200, False, "vulkan-nvidia"),
        (GTX_1650, False, AUTO),
        (RX_5700, False, "vulkan-amd"),
        (RX_580, False, AUTO),
        (ARC_A770, False, "vulkan-intel"),
        (LAVAPIPE, False, "vulkan"),
        (ADRENO_750, True, "adreno-vulkan"),
        (ADRENO_750, False, AUTO),
        (MALI_G720, True, "mali-vulkan"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else str(value),
)
def test_a_device_gets_its_makers_target(
    device: dict[str, Any], android: bool, target: str
) -> None:
    verdict = judge(device, android=android)
    assert verdict.used
    assert verdict.target == target


def test_every_shortfall_is_named() -> None:
    poor = {
        **RX_5700,
        "vulkan": "1.2.170",
        "max_buffer": 128 * MIB,
        "push_constants": 128,
        "alignment": 512,
        "features": [],
    }
    assert shortfalls(get_target("vulkan-nvidia"), poor) == [
        "has local memory of 32 KiB where the code has 48",
        "has buffers of 128 MiB where the code has 1024",
        "splits buffers at 512 bytes where the code does at 256",
        "has Vulkan 1.2 where the code has 1.3",
        "has 128 bytes of push constants where the code has 256",
        "has no 8-bit integers, which the code uses",
        "has no 16-bit integers, which the code uses",
        "has no 8-bit buffers, which the code uses",
        "has no 16-bit buffers, which the code uses",
        "has no 16-bit floats, which the code uses",
        "has no 8-bit dot products, which the code uses",
        "has no sums over subgroups, which the code uses",
        "has no addresses of buffers, which the code uses",
        "has no 16-bit floats below 2^-14, which the code uses",
        "has no units for 16×16×16 matrices of float16, which the code uses",
        "has no units for 16×16×32 matrices of int8, which the code uses",
    ]
    wide = replace(get_target("vulkan-nvidia"), features=frozenset(), matrices=())
    assert shortfalls(wide, {**H200, "subgroup_sizes": [64, 64]}) == [
        "runs 64 threads together where the code is for 32"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vulkan": "1.0.68"}, "has Vulkan 1.0 where 1.1 is needed"),
        ({"max_threads": 32}, "has work-groups of 32 threads"),
        ({"local_memory": 1024}, "has local memory of 1024 bytes"),
        ({"max_buffer": 1 * MIB}, "has buffers of less than 32 MiB"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(change: dict[str, Any], words: str) -> None:
    device = {**RX_5700, **change}
    verdict = judge(device)
    assert not verdict.used
    assert verdict.target is None
    assert words in verdict.reason
    assert any(words in lack for lack in shortfalls(from_device(RX_5700), device))


def test_notes_say_what_to_expect() -> None:
    assert judge(H200).notes == ("has units for matrices", "buffers above 1024 MiB are split")
    assert "no 16-bit floats" in judge(RX_580).notes[0]
    assert "kernels keep to registers" in str(judge(MALI_G720, android=True).notes)
    assert judge(ADRENO_750, android=True).notes == ("buffers above 128 MiB are split",)
    assert "where it is named (--device vulkan:0)" in judge(LAVAPIPE).reason
    assert "--target cpu" in judge(LAVAPIPE).reason


FAMILIES = ("vulkan", "vulkan-amd", "vulkan-intel", "adreno-vulkan", "mali-vulkan", AUTO)


@pytest.mark.skipif(bool(missing("vulkan")), reason=missing("vulkan"))
@pytest.mark.parametrize("name", FAMILIES)
def test_a_kernel_of_each_family_computes_rightly(name: str) -> None:
    compare_a_norm(get_target(name, devices("vulkan")[0]).with_host(this_host()))
