"""`fabric devices`: what this computer has to run models on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from ..targets import cpu_flags, host_cpu
from .common import SEED_UNUSED, command
from .output import Output

# The instruction sets that make a difference to fabric, under the names of Linux.
NOTABLE_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
)


@command(
    "devices",
    examples=["fabric devices", "fabric devices --json"],
    seed_help=SEED_UNUSED,
)
def devices_command(output: Output, seed: int | None) -> None:
    """Show this computer's devices and the target that suits each."""
    cpu = describe_cpu()
    output.say(f"[bold]cpu[/]  {cpu['name']}")
    table = output.table("", "")
    table.add_row("  cores", f"{cpu['cores']} usable of {cpu['cores_total']}")
    table.add_row("  memory", _memory(cpu))
    table.add_row("  instructions", ", ".join(cpu["features"]) or "nothing notable")
    table.add_row("  target", f"{cpu['target']}, which is what --target cpu means here")
    output.show(table)
    output.result({"devices": [cpu]})


def describe_cpu() -> dict[str, Any]:
    """Describe the processor and the memory of this computer.

    Returns
    -------
    dict
        ``kind``, ``name``, ``cores`` (that this process may use), ``cores_total``,
        ``memory_mib`` and ``memory_available_mib`` (None where the system does not say),
        ``features`` and ``target``.
    """
    flags = cpu_flags()
    memory = _meminfo()
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return {
        "kind": "cpu",
        "name": _cpu_name(),
        "cores": usable,
        "cores_total": total,
        "memory_mib": memory.get("MemTotal"),
        "memory_available_mib": memory.get("MemAvailable"),
        "features": [flag for flag in NOTABLE_FLAGS if flag in flags],
        "target": host_cpu().name,
    }


def _cpu_name() -> str:
    """What the processor calls itself, or else its architecture."""
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown processor"


def _meminfo() -> dict[str, float]:
    """Give the entries of /proc/meminfo in MiB; none where the system has no such file."""
    entries = (line.split() for line in _lines("/proc/meminfo"))
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in entries if len(words) == 3}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _memory(cpu: dict[str, Any]) -> str:
    """Say how much memory there is, for people."""
    if cpu["memory_mib"] is None:
        return "unknown"
    total, available = cpu["memory_mib"], cpu["memory_available_mib"] or 0.0
    return f"{total / 1024:.1f} GiB, {available / 1024:.1f} GiB of it free"
