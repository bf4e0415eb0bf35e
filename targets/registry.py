"""Every target and every device API by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .cpu import TARGETS as CPU_TARGETS
from .cpu import host_cpu
from .cuda_device import CUDA_API
from .device_api import DeviceApi
from .errors import FabricError
from .host import this_host
from .metal_device import METAL_API
from .opencl_device import OPENCL_API
from .rocm_device import ROCM_API
from .target import Target
from .vulkan_device import VULKAN_API

APIS: dict[str, DeviceApi] = {
    api.kind: api for api in (CUDA_API, METAL_API, OPENCL_API, VULKAN_API, ROCM_API)
}
REGISTRY: dict[str, Target] = {
    target.name: target
    for targets in (CPU_TARGETS, *(api.targets for api in APIS.values()))
    for target in targets
}


def _own_cpu() -> Target:
    """Return the best target for this machine's processor, for this machine's system."""
    found, triple = host_cpu(), this_host()
    return replace(found, options={**found.options, "mtriple": triple})


def list_targets() -> list[Target]:
    """Return every named target, in the order of the registry."""
    return list(REGISTRY.values())


def automatic(name: str) -> DeviceApi | None:
    """Return the API whose device a target of this name is made from; None for other names."""
    return next((api for api in APIS.values() if api.auto == name), None)


def get_target(name: str, device: Mapping[str, Any] | None = None) -> Target:
    """Return a target by name.

    Parameters
    ----------
    name : str
        A name of the registry; ``cpu`` is the best one for this machine's processor, and
        ``opencl:auto`` or ``vulkan:auto`` exactly what `device` reports.
    device : mapping, optional
        The description of the device in hand, for one that ends in ``:auto``.

    Raises
    ------
    FabricError
        If no target has the name, or it is made from a device and none is given.
    """
    if name == "cpu":
        return _own_cpu()
    if name in REGISTRY:
        return REGISTRY[name]
    if api := automatic(name):
        if device is not None:
            return api.from_device(device)
        raise FabricError(
            f"The target {name} is made from a device, and none was described.",
            "Name the kind of device instead; `fabric devices` says which suits which.",
        )
    names = ["cpu", *(api.auto for api in APIS.values()), *REGISTRY]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise FabricError(
        f"There is no target named {name!r}.", f"{hint}List them with: fabric targets"
    )
