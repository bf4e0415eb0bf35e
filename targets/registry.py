"""Every target by name."""

from __future__ import annotations

import difflib

from .cpu import TARGETS as CPU_TARGETS
from .cpu import host_cpu
from .errors import FabricError
from .opencl import TARGETS as OPENCL_TARGETS
from .target import Target

REGISTRY: dict[str, Target] = {target.name: target for target in (*CPU_TARGETS, *OPENCL_TARGETS)}


def list_targets() -> list[Target]:
    """Return every named target, in the order of the registry."""
    return list(REGISTRY.values())


def get_target(name: str) -> Target:
    """Return a target by name; ``cpu`` is the best one for this machine's processor.

    Raises
    ------
    FabricError
        If no target has the name.
    """
    if name == "cpu":
        return host_cpu()
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(name, ["cpu", *REGISTRY], n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise FabricError(
        f"There is no target named {name!r}.", f"{hint}List them with: fabric targets"
    )
