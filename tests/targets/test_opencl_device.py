"""Which devices are used, by which target, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest
from bitfabric.targets import get_target
from bitfabric.targets.device_api import on_android
from bitfabric.targets.opencl import AUTO, from_device
from bitfabric.targets.opencl_device import OPENCL_API, opencl_version

from .descriptions import (
    ADRENO_740,
    ADRENO_830,
    CLOVER,
    H200,
    MALI_G715,
    MIB,
    POCL,
    RX_480,
    UHD_730,
)

judge, shortfalls = OPENCL_API.judge, OPENCL_API.shortfalls
ALL = (ADRENO_740, ADRENO_830, H200, MALI_G715, POCL, RX_480, UHD_730)


@pytest.mark.parametrize(
    ("device", "target"),
    [
        (ADRENO_830, "adreno-830"),
        (ADRENO_740, "adreno-740"),
        ({**ADRENO_740, "version": "OpenCL 3.0 Adreno(TM) 735"}, "adreno"),
        ({**ADRENO_740, "version": "OpenCL 2.0 Adreno(TM) 640"}, AUTO),
        ({**ADRENO_740, "name": "Qualcomm Adreno X1-85", "version": "OpenCL 3.0"}, AUTO),
        (MALI_G715, "mali-g715"),
        ({**MALI_G715, "name": "Mali-G720-Immortalis MC12"}, "mali-g720"),
        ({**MALI_G715, "name": "Mali-G610 MC6 r0p0"}, "mali"),
        ({**MALI_G715, "name": "Mali-G52", "max_threads": 384}, "mali"),
        ({**MALI_G715, "name": "Mali-T860", "max_threads": 256}, AUTO),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value['name']}-{value['version']}",
)
def test_a_phones_device_gets_the_phones_target(device: dict[str, Any], target: str) -> None:
    assert judge(device, android=True).target == target
    # On a board or laptop the host is another, so the presets of phones are not for it.
    assert judge(device, android=False).target == AUTO


@pytest.mark.parametrize(
    ("device", "target"),
    [(H200, "opencl-nvidia"), (UHD_730, "intel-gpu"), (RX_480, "opencl-amd"), (POCL, "opencl")],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_a_computers_device_gets_its_makers_target(device: dict[str, Any], target: str) -> None:
    verdict = judge(device, android=False)
    assert verdict.used
    assert verdict.target == target
    assert not shortfalls(get_target(target), device)


@pytest.mark.parametrize("device", ALL, ids=lambda device: device["name"])
def test_a_target_made_from_a_device_fits_it(device: dict[str, Any]) -> None:
    assert shortfalls(from_device(device), device) == []


def test_a_small_device_gets_a_target_of_its_own() -> None:
    small = {**H200, "max_buffer": 256 * MIB, "global_memory": 1024 * MIB}
    assert judge(small).target == AUTO
    assert shortfalls(get_target("opencl-nvidia"), small) == [
        "has buffers of 256 MiB where the code has 1024"
    ]


def test_every_shortfall_is_named() -> None:
    poor = {**UHD_730, "max_threads": 128, "local_memory": 16384, "alignment": 4096}
    poor |= {"fp16": False, "extensions": []}
    assert shortfalls(get_target("intel-gpu"), poor) == [
        "has work-groups of 128 threads where the code has 256",
        "has local memory of 16 KiB where the code has 64",
        "splits buffers at 4096 bytes where the code does at 128",
        "has no 16-bit floats, which the code uses",
        "has no cl_khr_subgroups, which the code uses",
    ]
    assert "processor" in shortfalls(get_target("cpu"), H200)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "OpenCL 1.1 Mesa 18.3.6"}, "OpenCL 1.1 where 1.2"),
        ({"profile": "EMBEDDED_PROFILE"}, "EMBEDDED_PROFILE where the FULL_PROFILE"),
        ({"compiler": False}, "without a compiler"),
        ({"max_threads": 1}, "work-groups of 1 threads"),
        ({"local_memory": 1024}, "local memory of 1024 bytes"),
        ({"max_buffer": 1 * MIB}, "less than 32 MiB"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(change: dict[str, Any], words: str) -> None:
    device = {**UHD_730, **change}
    verdict = judge(device)
    assert not verdict.used
    assert verdict.target is None
    assert verdict.reason.startswith("refused: it has")
    assert words in verdict.reason
    assert any(words in lack for lack in shortfalls(from_device(UHD_730), device))


def test_the_full_profile_and_a_compiler_are_no_reason_to_refuse() -> None:
    assert judge({**UHD_730, "profile": "FULL_PROFILE", "compiler": True}).used
    assert not judge(CLOVER).used


def test_notes_say_what_to_expect() -> None:
    assert judge(ADRENO_830, android=True).notes == ("buffers above 128 MiB are split",)
    said = "; ".join(judge(H200).notes)
    assert "no 16-bit floats" in said
    assert "buffers above 1024 MiB are split" in said
    assert "kernels keep to registers" in "; ".join(judge(MALI_G715, android=True).notes)
    assert "buffers above 256 MiB are split" in judge(MALI_G715, android=True).notes
    assert "--target cpu" in judge(POCL).reason


def test_a_compiler_of_wrong_results_is_warned_of() -> None:
    bad = "OpenCL 3.0 QUALCOMM build: commit unknown Compiler E031.47.12.03"
    assert "wrong results" in str(judge({**ADRENO_830, "driver": bad}).notes)
    assert "wrong results" not in str(judge({**ADRENO_740, "driver": bad}).notes)


def test_versions() -> None:
    assert opencl_version(H200) == (3, 0)
    assert opencl_version({"version": "FULL"}) == (0, 0)


def test_android_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_ROOT", raising=False)
    assert not on_android()
    monkeypatch.setenv("ANDROID_ROOT", "/system")
    assert on_android()
    assert judge(ADRENO_830).target == "adreno-830"
