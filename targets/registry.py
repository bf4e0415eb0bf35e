"""Every target by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from .cpu import TARGETS as CPU_TARGETS
from .cpu import host_cpu
from .errors import FabricError
from .opencl import AUTO, from_device
from .opencl import TARGETS as OPENCL_TARGETS
from .target import Target

REGISTRY: dict[str, Target] = {target.name: target for target in (*CPU_TARGETS, *OPENCL_TARGETS)}


def list_targets() -> list[Target]:
    """Return every named target, in the order of the registry."""
    return list(REGISTRY.values())


def get_target(name: str, device: Mapping[str, Any] | None = None) -> Target:
    """Return a target by name.

    Parameters
    ----------
    name : str
        A name of the registry; ``cpu`` is the best one for this machine's processor and
        ``opencl:auto`` exactly what `device` reports.
    device : mapping, optional
        The description of the device in hand, for ``opencl:auto``.

    Raises
    ------
    FabricError
        If no target has the name, or it is ``opencl:auto`` without a device.
    """
    if name == "cpu":
        return host_cpu()
    if name in REGISTRY:
        return REGISTRY[name]
    if name == AUTO:
        if device is not None:
            return from_device(device)
        raise FabricError(
            f"The target {AUTO} is made from a device, and none was described.",
            "Name the kind of device instead; `fabric devices` says which suits which.",
        )
    near = difflib.get_close_matches(name, ["cpu", AUTO, *REGISTRY], n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise FabricError(
        f"There is no target named {name!r}.", f"{hint}List them with: fabric targets"
    )
