"""What a record calls the device it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...targets import Target, host_cpu, processor
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
        return Device(*processor())
    return None


def _runs_here(target: Target) -> bool:
    """Tell whether this machine's processor is of a target's kind, or better."""
    here = host_cpu()
    triples = (str(t.options.get("mtriple", "")).partition("-")[0] for t in (here, target))
    return len(set(triples)) == 1 and target.features <= here.features
