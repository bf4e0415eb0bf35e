"""What earlier runs tried, and what records tell: where a search and its model begin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...targets import FabricError, get_target
from .cost_model import Trial, features_of
from .records import Device, Record
from .search import Values
from .store import data_folder, read


def trials_of(kernels: Iterable[str]) -> dict[str, list[Trial]]:
    """Return what was ever tried of some computations, on all targets."""
    found: dict[str, list[Trial]] = {name: [] for name in kernels}
    for path in sorted((data_folder() / "trials").glob("*.jsonl")):
        for _, line in read(path)[0]:
            name = line.get("kernel")
            if name in found and line.get("features"):
                found[name].append(Trial(str(line.get("key")), line["features"], _ratio(line)))
    return found


def learned(record: Record) -> list[Trial]:
    """Return what a record of any target tells a model: its decisions' time by the default's."""
    try:
        target = get_target(record.target)
    except FabricError:
        # One that only a device in hand describes, or that another version knew.
        return []
    features = features_of(record.decisions, record.kernel.sizes, target)
    return [Trial(record.key, features, record.ratio)]


def tried(path: Path, key: str, device: Device) -> list[tuple[Values, float]]:
    """Return the candidates of a kernel that were tried on a device."""
    found = []
    for _, line in read(path)[0]:
        if line.get("key") == key and line.get("device") == device.title:
            values = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in line.get("decisions", {}).items()
            }
            found.append((values, _ratio(line)))
    return found


def _ratio(line: dict[str, Any]) -> float:
    ratio = line.get("ratio")
    return float("inf") if ratio is None else float(ratio)
