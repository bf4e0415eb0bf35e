"""ROCm as a device API: which of its devices are used, by which target, and what they lack."""

from __future__ import annotations

from .device_api import Description, DeviceApi
from .rocm import ARCHITECTURES, TARGETS, architecture, architectures, from_device
from .target import Target


def _of(description: Description) -> str:
    return architecture(str(description["architecture"]))


def _refusal(description: Description) -> str:
    """Say, after "it", why a device can't be used; empty where it can."""
    name = _of(description)
    if name not in ARCHITECTURES:
        return f"is of the architecture {name}, which our kernels do not know"
    return ""


def _candidates(description: Description) -> list[str]:
    """Return the named targets that suit a device, the narrowest first."""
    return [f"rocm-{_of(description)}", "rocm"]


def _lacks(target: Target, description: Description) -> list[str]:
    """Return what a device lacks for a target beyond the limits that all APIs share."""
    names, found = architectures(target), []
    if _of(description) not in names:
        found.append(f"is {_of(description)} where the code is for {', '.join(names)}")
    wave = target.limits.subgroup if target.limits is not None else 0
    (there,) = description["subgroup_sizes"]
    if wave not in (0, there):
        found.append(f"runs {there} threads together where the code is for {wave}")
    return found


def _notes(description: Description) -> list[str]:
    """Say what to expect of a device."""
    return ["has units for matrices"] if ARCHITECTURES[_of(description)].matrices else []


def _driver(description: Description) -> str:
    return f"{description['driver']}; {description['architecture']}"


ROCM_API = DeviceApi(
    kind="rocm",
    name="ROCm",
    device_type=10,
    targets=TARGETS,
    from_device=from_device,
    refusal=_refusal,
    candidates=_candidates,
    lacks=_lacks,
    notes=_notes,
    driver=_driver,
    install="Install AMD's ROCm, 6.0 or later, or name its library in FABRIC_HIP_LIB.",
    on_request=False,
)
