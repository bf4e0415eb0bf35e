"""`fabric devices`: what this computer has to run models on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from ..targets import APIS, DeviceApi, FabricError, cpu_flags, host_cpu
from .common import SEED_UNUSED, command
from .output import Output

MIB, GIB = 2**20, 2**30

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
    """Show this computer's devices and the target that suits each.

    The processor, and every device that a driver of CUDA, Metal, OpenCL or Vulkan offers, with
    what to expect of it or why it is refused. `fabric run --device opencl:1`, or a part of a name,
    uses another than the first that fits.
    """
    cpu = describe_cpu()
    output.say(f"[bold]cpu[/]  {cpu['name']}")
    table = output.table("", "")
    table.add_row("  cores", f"{cpu['cores']} usable of {cpu['cores_total']}")
    table.add_row("  memory", _memory(cpu))
    table.add_row("  instructions", ", ".join(cpu["features"]) or "nothing notable")
    table.add_row("  target", f"{cpu['target']}, which is what --target cpu means here")
    output.show(table)
    found, problems = [cpu], {}
    for kind, api in APIS.items():
        try:
            devices = describe_devices(output, api)
        except FabricError as error:
            problems[kind] = {"error": error.cause, "remedy": error.remedy}
            output.say(f"\n[bold]{kind}[/]  none: {error.cause}")
            output.hint(f"  {error.remedy} `fabric doctor` says more.")
            continue
        for device in devices:
            _show(output, api, device)
        found += devices
    output.result({"devices": found, "problems": problems})


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


def describe_devices(output: Output, api: DeviceApi) -> list[dict[str, Any]]:
    """Describe every device that an API's drivers offer, and judge it.

    Returns
    -------
    list of dict
        In the order of their indices: ``kind`` (the API's), what the driver says (``index``,
        ``name``, ``max_buffer``, …), and the verdict: ``used``, ``target``, ``reason``, ``notes``.

    Raises
    ------
    FabricError
        If there is no driver, or the native backend is missing and can't be built.
    """
    # The runtime takes a moment to import, which the help need not wait for.
    from ..runtime.backends import backend_status, devices

    status = backend_status(api.kind)
    if status["library"] is None and status["problem"] is None:
        output.aside(f"Building the {api.name} backend, once; this takes some seconds.")
    found = []
    for description in devices(api.kind):
        verdict = api.judge(description)
        found.append(
            {
                **description,
                "kind": api.kind,
                "used": verdict.used,
                "target": verdict.target,
                "reason": verdict.reason,
                "notes": list(verdict.notes),
            }
        )
    return found


def _show(output: Output, api: DeviceApi, device: dict[str, Any]) -> None:
    """Print one device."""
    output.say(f"\n[bold]{api.kind}:{device['index']}[/]  {device['name']} ({device['type']})")
    table = output.table("", "")
    table.add_row(
        "  memory",
        f"{device['global_memory'] / GIB:.1f} GiB"
        f"{', shared with the processor' if device['unified_memory'] else ''}; "
        f"{device['max_buffer'] / MIB:,.0f} MiB in one buffer",
    )
    sizes = device["subgroup_sizes"]
    together = " to ".join(map(str, sorted({sizes[0], sizes[-1]}))) if sizes else ""
    table.add_row(
        "  work-groups",
        f"{device['max_threads']} threads{f', {together} at a time' if together else ''}; "
        f"{device['local_memory'] // 1024} KiB of local memory",
    )
    table.add_row("  driver", api.driver(device))
    mark = "[green]yes[/]: " if device["used"] else "[red]no[/]: "
    table.add_row("  used", mark + device["reason"])
    if device["target"]:
        table.add_row("  target", device["target"])
    for note in device["notes"]:
        table.add_row("", note)
    output.show(table)


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
