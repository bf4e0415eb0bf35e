"""OpenCL as a device API: which of its devices are used, by which target, and what they lack."""

from __future__ import annotations

import re

from .device_api import Description, DeviceApi, is_processor
from .opencl import TARGETS, from_device, has_subgroups, is_adreno, is_nvidia
from .target import Target

LEAST_VERSION = (1, 2)


def opencl_version(description: Description) -> tuple[int, int]:
    """Return the version of OpenCL that a device names; (0, 0) where it names none."""
    found = re.match(r"OpenCL (\d+)\.(\d+)", str(description.get("version", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _refusal(description: Description) -> str:
    """Say, after "it", why a device can't be used; it is of the full profile if it says nothing."""
    version = opencl_version(description)
    profile = str(description.get("profile") or "FULL_PROFILE")
    if version < LEAST_VERSION:
        return f"has OpenCL {version[0]}.{version[1]} where 1.2 is needed"
    if profile != "FULL_PROFILE":
        return f"has OpenCL's {profile} where the FULL_PROFILE is needed"
    if description.get("compiler") is False:
        return "has a driver without a compiler, and bundles carry OpenCL C"
    return ""


def _candidates(description: Description) -> list[str]:
    """Return the named targets that a device's maker and model suggest, the narrowest first."""
    name, vendor = str(description.get("name", "")), str(description.get("vendor", ""))
    if is_processor(description):
        return ["opencl"]
    if is_adreno(description):
        # The name may end at "Adreno(TM)"; the version then names the model.
        found = re.search(r"adreno\D*?(\d{3})\b", _names(description), re.I)
        model = int(found[1]) if found else 0
        return [f"adreno-{model}", *(["adreno"] if model >= 700 else [])]
    mali = re.search(r"(?:mali|immortalis)\s*-?\s*g(\d+)", name, re.I)
    if mali:
        return [f"mali-g{mali[1]}", "mali"]
    if is_nvidia(description):
        return ["opencl-nvidia"]
    if "intel" in vendor.lower():
        return ["intel-gpu"]
    return ["opencl-amd"] if re.search(r"\bamd\b|advanced micro", vendor, re.I) else []


def _lacks(target: Target, description: Description) -> list[str]:
    found = []
    if "fp16" in target.features and not description.get("fp16"):
        found.append("has no 16-bit floats, which the code uses")
    if "subgroup" in target.features and not has_subgroups(description):
        found.append("has no cl_khr_subgroups, which the code uses")
    return found


def _notes(description: Description) -> list[str]:
    """Say what to expect of a device."""
    notes = []
    if not description.get("fp16"):
        notes.append("no 16-bit floats: it computes in 32-bit floats and 8-bit integers")
    if description.get("local_memory_emulated"):
        notes.append("its local memory lies in global memory: kernels keep to registers")
    driver = str(description.get("driver", ""))
    # Google's LiteRT warns of kernels that fail and of wrong results with this compiler.
    if is_adreno(description) and "E031.47.12" in driver and "Adreno(TM) 8" in _names(description):
        notes.append(
            "this driver's compiler (E031.47.12) is known for wrong results: update the phone"
        )
    return notes


def _names(description: Description) -> str:
    return f"{description.get('name')} {description.get('version')}"


def _driver(description: Description) -> str:
    return f"{description['platform']} {description['driver']}; {description['version']}"


OPENCL_API = DeviceApi(
    kind="opencl",
    name="OpenCL",
    device_type=4,
    targets=TARGETS,
    from_device=from_device,
    refusal=_refusal,
    candidates=_candidates,
    lacks=_lacks,
    notes=_notes,
    driver=_driver,
    install="Install your device's OpenCL driver, or PoCL (apt install pocl-opencl-icd), which "
    "runs on any processor, or name a driver's library in FABRIC_OPENCL_LIB.",
    on_request=False,
)
