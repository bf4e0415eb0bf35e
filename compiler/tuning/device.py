"""What a record calls the device it was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...targets import Target, host_cpu
from .records import Device


def this_device(target: Target, description: Mapping[str, Any] | None = None) -> Device | None:
    """Return the device of this machine that a target's code would run on; None for another's.

    Parameters
    ----------
    target : Target
        The target.
    description : mapping, optional
        What the native backend says of the device in hand, for a target that is none of processors.
    """
    if description is not None:
        detail = " ".join(str(description.get(name, "")) for name in ("vendor", "driver"))
        return Device(str(description["name"]), detail.strip())
    if target.family == "cpu" and _runs_here(target):
        return _processor()
    return None


def _runs_here(target: Target) -> bool:
    """Tell whether this machine's processor is of a target's kind, or better."""
    here = host_cpu()
    triples = (str(t.options.get("mtriple", "")).partition("-")[0] for t in (here, target))
    return len(set(triples)) == 1 and target.features <= here.features


def _processor() -> Device:
    """Return this machine's processor."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    names = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")
    detail = " ".join(f"{name} {fields[name]}" for name in names if fields.get(name))
    name = fields.get("model name") or platform.processor() or platform.machine()
    if hasattr(os, "sched_getaffinity"):
        return Device(name, detail, len(os.sched_getaffinity(0)))
    return Device(name, detail, os.cpu_count() or 1)
