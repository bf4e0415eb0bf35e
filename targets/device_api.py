"""A device API and its devices: whether one is used, by which target, and what to expect of it.

Everything here is decided from the description that a native backend gives of a device
(``bitfabric.opencl.devices``), so it can be decided for a device that is not there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .target import KIB, MIB, Target

DEVICE_VARIABLE = "FABRIC_DEVICE"
"""The environment variable that names the device to use: ``opencl:1``, or a part of its name."""
WINDOW = 1024 * MIB
"""Bytes of a buffer that kernels address at once, where the device allows as many: they count
elements by 32-bit integers, and a byte offset must fit one, too."""
LEAST_THREADS = 64
LEAST_LOCAL = 16 * KIB
"""Bytes of local memory that the reductions of our kernels may take."""
LEAST_BUFFER = 32 * MIB
Description = Mapping[str, Any]
"""What a native backend says of a device: sizes in bytes; ``index``, ``name``, ``vendor``,
``driver``, ``type`` ("gpu", "cpu", …), ``global_memory``, ``max_buffer``, ``max_threads``,
``local_memory``, ``alignment``, ``subgroup_sizes``, ``unified_memory``, and more of each API."""


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


@dataclass(frozen=True)
class DeviceApi:
    """One way to reach graphics processors.

    Attributes
    ----------
    kind : str
        TVM's name of it, which is also its backend's, its generic target's, and what stands before
        the colon in the name of a device: ``"opencl"``.
    name : str
        What people call it.
    device_type : int
        DLPack's number of it.
    targets : tuple of Target
        The named targets.
    from_device : callable
        Makes the target :attr:`auto` of a description: exactly what the device reports.
    refusal : callable
        Says of a description, after "it", why no target can use the device; "" where one can.
    candidates : callable
        Names the targets that a device's maker and model suggest, the narrowest first.
    lacks : callable
        Lists what a device lacks for a target, beyond the limits that all APIs share, as phrases
        after "it".
    notes : callable
        Says what to expect of a device, a few words each.
    driver : callable
        Says in a line which driver the device has.
    install : str
        The remedy where there is no driver.
    on_request : bool
        Whether processors that pose as devices are used only where they are named. An OpenCL driver
        for processors is there because somebody wanted it; one of Vulkan's comes with any desktop.
    """

    kind: str
    name: str
    device_type: int
    targets: tuple[Target, ...]
    from_device: Callable[[Description], Target]
    refusal: Callable[[Description], str]
    candidates: Callable[[Description], list[str]]
    lacks: Callable[[Target, Description], list[str]]
    notes: Callable[[Description], list[str]]
    driver: Callable[[Description], str]
    install: str
    on_request: bool

    @property
    def auto(self) -> str:
        """The name of the target that is made from the description of the device in hand."""
        return f"{self.kind}:auto"

    def named(self, name: str) -> Target | None:
        """Return a target by name; None where this API has none of it."""
        return next((target for target in self.targets if target.name == name), None)

    def judge(self, description: Description, android: bool | None = None) -> Verdict:
        """Decide whether a device is used and which target suits it.

        Parameters
        ----------
        description : mapping
            What the native backend says of the device.
        android : bool, optional
            Whether the device is in an Android phone, which the phones' targets are for; by default
            whether this machine is one.
        """
        refusal = self._refusal(description)
        if refusal:
            return Verdict(False, None, f"refused: it {refusal}.")
        target = self.suitable(description, on_android() if android is None else android)
        named = self.named(target)
        if is_processor(description):
            name = f"{self.kind}:{description['index']}"
            asked = f", where it is named (--device {name})" if self.on_request else ""
            reason = f"works{asked}, but a processor is faster with --target cpu."
        elif named is None:
            reason = "works, by a target made for exactly this device."
        else:
            reason = f"works, as {named.description}."
        limits = (named or self.from_device(description)).limits
        notes = list(self.notes(description))
        if limits is not None:
            notes.append(f"buffers above {limits.max_buffer // MIB} MiB are split")
        return Verdict(True, target, reason, tuple(notes))

    def suitable(self, description: Description, android: bool) -> str:
        """Return the name of the narrowest target whose code runs on a device.

        :attr:`auto`, which always does, where no named one is for it.
        """
        for name in self.candidates(description):
            target = self.named(name)
            # Named targets of phones bring a phone's host along.
            if target is None or ("android" in (target.host or "") and not android):
                continue
            if not self.shortfalls(target, description):
                return name
        return self.auto

    def shortfalls(self, target: Target, description: Description) -> list[str]:
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
        limits, refusal = target.limits, self._refusal(description)
        if limits is None:
            return ["is a graphics processor where the code is for a processor"]
        found = [refusal] if refusal else []
        for key, least, what, scale, unit in (
            ("max_threads", limits.max_threads, "work-groups", 1, "threads"),
            ("local_memory", limits.shared_bytes, "local memory", KIB, "KiB"),
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
        return found + self.lacks(target, description)

    def _refusal(self, description: Description) -> str:
        """Say, after "it", why a device can't be used by any target; empty where it can."""
        threads, local = int(description["max_threads"]), int(description["local_memory"])
        if own := self.refusal(description):
            return own
        if threads < LEAST_THREADS:
            return f"has work-groups of {threads} threads where {LEAST_THREADS} are needed"
        if local < LEAST_LOCAL:
            return f"has local memory of {local} bytes where {LEAST_LOCAL} are needed"
        if int(description["max_buffer"]) < LEAST_BUFFER:
            return f"has buffers of less than {LEAST_BUFFER // MIB} MiB"
        return ""


def is_processor(description: Description) -> bool:
    """Return whether a device is the processor, by a driver that lets it pose as one."""
    return description.get("type") == "cpu"


def on_android() -> bool:
    """Return whether this machine is an Android phone (Termux, for one)."""
    return hasattr(sys, "getandroidapilevel") or "ANDROID_ROOT" in os.environ


def group_threads(description: Description) -> int:
    """Return the threads of a device's largest work-group that our kernels use, a power of two."""
    # Reductions halve a work-group until one thread is left.
    return 1 << (min(int(description["max_threads"]), 1024).bit_length() - 1)
