"""Metal as a device API: which of its devices are used, by which target, and what they lack."""

from __future__ import annotations

import re

from .device_api import Description, DeviceApi
from .metal import LEAST_FAMILY, SIMD, TARGETS, from_device
from .target import Target


def _refusal(description: Description) -> str:
    """Say, after "it", why a device can't be used; empty where it can."""
    if LEAST_FAMILY not in description["families"]:
        return f"is of none of Apple's families from {LEAST_FAMILY} on (M1, A14), which are needed"
    return ""


def _candidates(description: Description) -> list[str]:
    """Return the named targets that suit a device, the narrowest first."""
    found = re.search(r"Apple ([MA])(\d+)", str(description["name"]))
    if found is None:
        return ["metal"]
    kind, number = found[1], found[2]
    return [f"metal-m{number}", "metal"] if kind == "M" else [f"ios-a{number}", "ios"]


def _lacks(target: Target, description: Description) -> list[str]:
    """Return what a device lacks for a target beyond the limits that all APIs share."""
    sizes = description.get("subgroup_sizes") or [SIMD]
    if sizes[0] != SIMD:
        return [f"runs {sizes[0]} threads together where the code is for {SIMD}"]
    return []


def _notes(description: Description) -> list[str]:
    """Say what to expect of a device."""
    return ["has units for matrices"]


def _driver(description: Description) -> str:
    return f"{description['driver']}; family {description['families'][-1]}"


METAL_API = DeviceApi(
    kind="metal",
    name="Metal",
    device_type=8,
    targets=TARGETS,
    from_device=from_device,
    refusal=_refusal,
    candidates=_candidates,
    lacks=_lacks,
    notes=_notes,
    driver=_driver,
    install="Metal is Apple's, and part of macOS: run the bundle on a Mac with Apple silicon.",
    on_request=False,
)
