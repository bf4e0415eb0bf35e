"""CUDA as a device API: which of its devices are used, by which target, and what they lack."""

from __future__ import annotations

from .cuda import (
    LEAST_CAPABILITY,
    TARGETS,
    architectures,
    capability,
    capability_of,
    from_device,
    is_exact,
)
from .device_api import Description, DeviceApi
from .target import Target

LEAST_DRIVER = 13000
"""CUDA 13.0, as the driver tells its version: its runtime library asks as much."""


def _refusal(description: Description) -> str:
    """Say, after "it", why a device can't be used; empty where it can."""
    here = capability(description)
    if here < LEAST_CAPABILITY:
        return f"has compute capability {_told(here)} where {_told(LEAST_CAPABILITY)} is needed"
    if int(description["cuda"]) < LEAST_DRIVER:
        return f"has a driver for CUDA {_version(description)} where 13.0 is needed"
    return ""


def _candidates(description: Description) -> list[str]:
    """Return the named targets that suit a device, the narrowest first."""
    major, minor = capability(description)
    return [f"cuda-sm{10 * major + minor}", "cuda"]


def _lacks(target: Target, description: Description) -> list[str]:
    """Return what a device lacks for a target beyond the limits that all APIs share."""
    here, names = capability(description), architectures(target)
    least = min(capability_of(name) for name in names)
    if all(is_exact(name) and capability_of(name) != here for name in names):
        return [f"has compute capability {_told(here)} where the code is for {_told(least)} alone"]
    # What is newer than all that the code is for runs the virtual code of the oldest.
    if here < least:
        return [f"has compute capability {_told(here)} where the code has {_told(least)}"]
    return []


def _notes(description: Description) -> list[str]:
    """Say what to expect of a device."""
    return ["has units for matrices"]


def _driver(description: Description) -> str:
    return f"CUDA {_version(description)}; compute capability {_told(capability(description))}"


def _version(description: Description) -> str:
    """Return the version of CUDA that the driver is for, as people write it."""
    number = int(description["cuda"])
    return f"{number // 1000}.{number % 1000 // 10}"


def _told(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"


CUDA_API = DeviceApi(
    kind="cuda",
    name="CUDA",
    device_type=2,
    targets=TARGETS,
    from_device=from_device,
    refusal=_refusal,
    candidates=_candidates,
    lacks=_lacks,
    notes=_notes,
    driver=_driver,
    install="Install NVIDIA's driver, 580 or later, and: pip install 'nvidia-cuda-runtime>=13,<14'",
    on_request=False,
)
