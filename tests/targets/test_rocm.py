"""The ROCm targets: TVM takes them, devices get the one that fits, and the rest are refused."""

from __future__ import annotations

from typing import Any

import pytest
from bitfabric.compiler.pipeline import tvm_target
from bitfabric.targets import Target, get_target, list_targets
from bitfabric.targets.rocm import (
    ARCHITECTURES,
    AUTO,
    MODELS,
    ROCM,
    TARGETS,
    architectures,
    from_device,
)
from bitfabric.targets.rocm_device import ROCM_API

judge, shortfalls = ROCM_API.judge, ROCM_API.shortfalls


def device(name: str, architecture: str, wave: int) -> dict[str, Any]:
    """Return a description as the backend writes it."""
    return {
        "index": 0, "name": name, "vendor": "AMD", "driver": "HIP 6.3.42134", "type": "gpu",
        "architecture": architecture, "global_memory": 16 << 30, "max_buffer": 16 << 30,
        "local_memory": 64 << 10, "max_threads": 1024, "alignment": 256,
        "subgroup_sizes": [wave],
    }  # fmt: skip


MI250X = device("AMD Instinct MI250X", "gfx90a:sramecc+:xnack-", 64)
RX_7900 = device("AMD Radeon RX 7900 XTX", "gfx1100", 32)
RX_7800 = device("AMD Radeon RX 7800 XT", "gfx1101", 32)
RX_580 = device("AMD Radeon RX 580", "gfx803", 64)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_tvm_takes_every_target_its_limits_and_architectures(target: Target) -> None:
    taken = tvm_target(target)
    assert taken.kind.name == "rocm"
    assert taken.attrs["max_threads_per_block"] == target.limits.max_threads
    assert taken.attrs["max_shared_memory_per_block"] == target.limits.shared_bytes
    assert {"rocm", "gpu", *architectures(target)} <= set(taken.keys)
    # No barrier may be left out between threads of a wave.
    assert taken.attrs["thread_warp_size"] == 1
    assert target in list_targets()


def test_the_generic_target_has_code_for_every_named_one_and_asks_for_no_wave() -> None:
    assert architectures(ROCM) == [name for target in MODELS for name in architectures(target)]
    assert ROCM.limits.subgroup == 0
    assert not ROCM.matrices
    for target in MODELS:
        (name,) = architectures(target)
        assert target.limits.subgroup == (64 if name.startswith("gfx9") else 32)
        assert target.matrices == ARCHITECTURES[name].matrices


@pytest.mark.parametrize(
    ("description", "target"),
    [(MI250X, "rocm-gfx90a"), (RX_7900, "rocm-gfx1100"), (RX_7800, AUTO)],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_a_device_gets_the_narrowest_target(description: dict[str, Any], target: str) -> None:
    verdict = judge(description, android=False)
    assert verdict.used
    assert verdict.target == target
    assert not shortfalls(get_target(target, description), description)


def test_an_architecture_that_nothing_is_known_of_is_refused() -> None:
    assert judge(RX_580).reason == (
        "refused: it is of the architecture gfx803, which our kernels do not know."
    )


def test_code_for_another_architecture_is_refused() -> None:
    (found,) = shortfalls(get_target("rocm-gfx1100"), RX_7800)
    assert found == "is gfx1101 where the code is for gfx1100"
    found, wave = shortfalls(get_target("rocm-gfx90a"), RX_7900)
    assert found == "is gfx1100 where the code is for gfx90a"
    assert wave == "runs 32 threads together where the code is for 64"


def test_the_device_in_hand_gets_code_for_its_architecture_alone() -> None:
    target = from_device(MI250X)
    assert target.name == AUTO
    assert architectures(target) == ["gfx90a"]
    assert target.matrices == get_target("rocm-gfx90a").matrices
