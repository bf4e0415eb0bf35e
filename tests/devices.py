"""The device APIs that this machine has a driver for, where the tests run what they compile."""

from __future__ import annotations

from functools import cache

import pytest
from bitfabric.runtime.backends import devices, expect_any_module
from bitfabric.targets import APIS, FabricError
from bitfabric.targets.device_api import is_processor


@cache
def missing(kind: str) -> str:
    """Return why there is no device of a kind here; nothing where there is one."""
    try:
        devices(kind)
    except FabricError as error:
        return str(error)
    # Tests keep tensors on a device while others load modules.
    expect_any_module(kind)
    return ""


def needs(kind: str) -> tuple[pytest.MarkDecorator, ...]:
    """Return the marks of tests that need a device of a kind."""
    skip = pytest.mark.skipif(bool(missing(kind)), reason=missing(kind))
    return pytest.mark.device(kind), skip


@cache
def is_slow(kind: str) -> bool:
    """Return whether a kind's device takes seconds to compile a kernel: lavapipe and PoCL do."""
    return not missing(kind) and is_processor(devices(kind)[0])


API_PARAMETERS = [pytest.param(kind, marks=needs(kind), id=kind) for kind in APIS]
"""A parameter for each API, skipped where there is no device of its."""
TARGET_PARAMETERS = [
    pytest.param(name, marks=needs(name.partition(":")[0]), id=name)
    for name in ("opencl", "vulkan:auto", "vulkan")
]
"""A parameter for each target that runs on any device of its API: the code that a generic one and
the device in hand get differs most with Vulkan."""
every_api = pytest.mark.parametrize("kind", API_PARAMETERS)
