"""What an OpenCL device is good for: whether it is used, by which target, and what to expect.

Everything here is decided from the description that the native backend gives of a device
(``bitfabric.opencl.devices``), so it can be decided for a device that is not there.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .opencl import AUTO, TARGETS, is_adreno, is_nvidia, window
from .target import MIB, Target

DEVICE_VARIABLE = "FABRIC_DEVICE"
"""The environment variable that names the device to use: ``opencl:1``, or a part of its name."""
LEAST_VERSION = (1, 2)
LEAST_THREADS = 64
LEAST_LOCAL = 16 << 10
"""Bytes of local memory that the reductions of our kernels may take."""
LEAST_BUFFER = 32 * MIB
_BY_NAME = {target.name: target for target in TARGETS}


@dataclass(frozen=True)
class Verdict:
    """What is done with a device.

    Attributes
    ----------
    used : bool
        Whether models can run on it.
    target : str, optional
        What to write after ``--target`` for it; None where it is refused.
    reason : str
        One sentence: why it is refused, or what it is used as.
    notes : tuple of str
        What to expect of it, a few words each.
    """

    used: bool
    target: str | None
    reason: str
    notes: tuple[str, ...] = ()


def judge(description: Mapping[str, Any], android: bool | None = None) -> Verdict:
    """Decide whether a device is used and which target suits it.

    Parameters
    ----------
    description : mapping
        What the native backend says of the device; ``profile`` and ``compiler`` are taken as
        FULL_PROFILE and True where it does not say.
    android : bool, optional
        Whether the device is in an Android phone, which the phones' targets are for; by default
        whether this machine is one.
    """
    refusal = _refusal(description)
    if refusal:
        return Verdict(False, None, f"refused: it {refusal}.")
    android = on_android() if android is None else android
    target = suitable(description, android)
    if description.get("type") == "cpu":
        reason = "works, but a processor is faster with --target cpu."
    elif target == AUTO:
        reason = "works, by a target made for exactly this device."
    else:
        reason = f"works, as {_BY_NAME[target].description}."
    named = _BY_NAME.get(target)
    limit = named.limits.max_buffer if named and named.limits else window(description)
    return Verdict(True, target, reason, _notes(description, limit))


def suitable(description: Mapping[str, Any], android: bool) -> str:
    """Return the name of the narrowest target whose code runs on a device.

    ``opencl:auto``, which always does, where no named one is for it.
    """
    for name in _candidates(description):
        target = _BY_NAME.get(name)
        if target is None or (target.host is not None and not android):
            continue
        if not shortfalls(target, description):
            return name
    return AUTO


def shortfalls(target: Target, description: Mapping[str, Any]) -> list[str]:
    """Return what a device lacks for code that was made for a target; empty where it fits.

    Parameters
    ----------
    target : Target
        A target with limits.
    description : mapping
        What the native backend says of the device.

    Returns
    -------
    list of str
        Phrases to follow "it", such as "has work-groups of 256 threads where the code has
        1024".
    """
    limits, refusal = target.limits, _refusal(description)
    if limits is None:
        return ["is a graphics processor where the code is for a processor"]
    found = [refusal] if refusal else []
    for key, least, what, scale, unit in (
        ("max_threads", limits.max_threads, "work-groups", 1, "threads"),
        ("local_memory", limits.shared_bytes, "local memory", 1 << 10, "KiB"),
        ("max_buffer", limits.max_buffer, "buffers", MIB, "MiB"),
    ):
        there = int(description[key])
        if there < least:
            found.append(
                f"has {what} of {there // scale} {unit} where the code has {least // scale}"
            )
    if int(description["alignment"]) > limits.alignment:
        found.append(
            f"splits buffers at {description['alignment']} bytes where the code does at "
            f"{limits.alignment}"
        )
    if "fp16" in target.features and not description.get("fp16"):
        found.append("has no 16-bit floats, which the code uses")
    return found


def on_android() -> bool:
    """Return whether this machine is an Android phone (Termux, for one)."""
    return hasattr(sys, "getandroidapilevel") or "ANDROID_ROOT" in os.environ


def opencl_version(description: Mapping[str, Any]) -> tuple[int, int]:
    """Return the version of OpenCL that a device names; (0, 0) where it names none."""
    found = re.match(r"OpenCL (\d+)\.(\d+)", str(description.get("version", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _refusal(description: Mapping[str, Any]) -> str:
    """Say, after "it", why a device can't be used by any target; empty where it can."""
    version = opencl_version(description)
    profile = str(description.get("profile") or "FULL_PROFILE")
    threads, local = int(description["max_threads"]), int(description["local_memory"])
    if version < LEAST_VERSION:
        return f"has OpenCL {version[0]}.{version[1]} where 1.2 is needed"
    if profile != "FULL_PROFILE":
        return f"has OpenCL's {profile} where the FULL_PROFILE is needed"
    if description.get("compiler") is False:
        return "has a driver without a compiler, and bundles carry OpenCL C"
    if threads < LEAST_THREADS:
        return f"has work-groups of {threads} threads where {LEAST_THREADS} are needed"
    if local < LEAST_LOCAL:
        return f"has local memory of {local} bytes where {LEAST_LOCAL} are needed"
    if int(description["max_buffer"]) < LEAST_BUFFER:
        return f"has buffers of less than {LEAST_BUFFER // MIB} MiB"
    return ""


def _candidates(description: Mapping[str, Any]) -> list[str]:
    """Return the named targets that a device's maker and model suggest, the narrowest first."""
    name, vendor = str(description.get("name", "")), str(description.get("vendor", ""))
    if description.get("type") == "cpu":
        return ["opencl"]
    if is_adreno(description):
        # The name may end at "Adreno(TM)"; the version then names the model.
        found = re.search(r"adreno\D*?(\d{3})\b", f"{name} {description.get('version')}", re.I)
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


def _notes(description: Mapping[str, Any], limit: int) -> tuple[str, ...]:
    """Say what to expect of a device whose buffers are split above `limit` bytes."""
    notes = []
    if not description.get("fp16"):
        notes.append("no 16-bit floats: it computes in 32-bit floats and 8-bit integers")
    if description.get("local_memory_emulated"):
        notes.append("its local memory lies in global memory: kernels keep to registers")
    notes.append(f"buffers above {limit // MIB} MiB are split")
    driver = str(description.get("driver", ""))
    # Google's LiteRT warns of kernels that fail and of wrong results with this compiler.
    if is_adreno(description) and "E031.47.12" in driver and "Adreno(TM) 8" in _names(description):
        notes.append(
            "this driver's compiler (E031.47.12) is known for wrong results: update the phone"
        )
    return tuple(notes)


def _names(description: Mapping[str, Any]) -> str:
    return f"{description.get('name')} {description.get('version')}"
