"""The CUDA targets: TVM takes them, devices get the one that fits, and the rest are refused."""

from __future__ import annotations

from typing import Any

import pytest
import tvm
from bitfabric.runtime.backends import devices
from bitfabric.targets import Target, get_target, list_targets
from bitfabric.targets.cuda import (
    AUTO,
    CUDA,
    MODELS,
    TARGETS,
    architectures,
    capability_of,
    from_device,
    is_exact,
)
from bitfabric.targets.cuda_device import CUDA_API

from ..devices import needs
from .cuda_descriptions import B300, GTX_1080, H200, OLD_DRIVER, RTX_2060, RTX_4090
from .one_kernel import compare_a_norm

judge, shortfalls = CUDA_API.judge, CUDA_API.shortfalls


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_tvm_takes_every_target_its_limits_and_architectures(target: Target) -> None:
    taken = tvm.target.Target(target.options)
    assert taken.kind.name == "cuda"
    assert taken.attrs["max_threads_per_block"] == target.limits.max_threads
    assert taken.attrs["max_shared_memory_per_block"] == target.limits.shared_bytes
    assert {"cuda", "gpu", *architectures(target)} <= set(taken.keys)
    # The virtual code that goes along is for the first, so it must be the oldest.
    assert taken.attrs["arch"] == architectures(target)[0]
    assert target in list_targets()


def test_the_generic_target_has_code_for_every_named_one() -> None:
    of_models = [capability_of(name) for target in MODELS for name in architectures(target)]
    assert [capability_of(name) for name in architectures(CUDA)] == of_models
    # Code that runs on one processor alone has no place among code for later ones.
    assert not any(is_exact(name) for name in architectures(CUDA))


@pytest.mark.parametrize(
    ("device", "target"),
    [(RTX_2060, "cuda-sm75"), (RTX_4090, "cuda-sm89"), (H200, "cuda-sm90"), (B300, "cuda")],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_a_device_gets_the_narrowest_target(device: dict[str, Any], target: str) -> None:
    verdict = judge(device, android=False)
    assert verdict.used
    assert verdict.target == target
    assert not shortfalls(get_target(target), device)


def test_what_cuda_13_does_not_serve_is_refused() -> None:
    assert "compute capability 6.1 where 7.5 is needed" in judge(GTX_1080).reason
    assert "a driver for CUDA 12.4 where 13.0 is needed" in judge(OLD_DRIVER).reason


def test_code_for_a_newer_processor_is_refused_and_for_an_older_one_is_not() -> None:
    (found,) = shortfalls(get_target("cuda-sm100"), RTX_4090)
    assert found == "has compute capability 8.9 where the code has 10.0"
    # The driver compiles the virtual code that goes along.
    assert not shortfalls(get_target("cuda-sm75"), H200)


def test_hoppers_code_uses_its_own_units_and_is_for_no_other() -> None:
    target = get_target("cuda-sm90")
    assert "warpgroup" in target.features
    assert "warpgroup" in from_device(H200).features
    assert "warpgroup" not in CUDA.features
    for device, number in ((RTX_4090, "8.9"), (B300, "10.3")):
        (found,) = shortfalls(target, device)
        assert found == f"has compute capability {number} where the code is for 9.0 alone"


def test_the_device_in_hand_gets_code_for_its_architecture_alone() -> None:
    target = from_device(B300)
    assert target.name == AUTO
    assert architectures(target) == ["sm_103"]
    assert get_target(AUTO, B300) == target
    assert target.matrices == CUDA.matrices


@pytest.mark.parametrize("name", [AUTO, "cuda"])
@pytest.mark.parametrize("kind", [pytest.param("cuda", marks=needs("cuda"))])
def test_a_kernel_runs_on_the_device_here(name: str, kind: str) -> None:
    compare_a_norm(get_target(name, devices(kind)[0]))
