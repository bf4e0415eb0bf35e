"""`fabric doctor`: what works on this computer, and what to install for what does not."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..targets import APIS, DeviceApi
from .checkup import (
    MISSING,
    OK,
    Row,
    check_compiler,
    check_packages,
    check_python,
    check_room,
    check_runtime,
)
from .checkup_devices import check_backend, check_devices, check_drivers, check_unused
from .common import EXIT_ERROR, SEED_UNUSED, CommandEnded, command, option
from .output import Output
from .report import gather
from .report_kernels import kernel_lines

REPORT = "fabric-report.json"
COLOURS = {OK: "green", MISSING: "yellow"}


@command(
    "doctor",
    examples=["fabric doctor", "fabric doctor --json", "fabric doctor --report"],
    seed_help=SEED_UNUSED,
)
@option(
    "--report",
    "report",
    type=click.Path(dir_okay=False, path_type=Path),
    is_flag=False,
    flag_value=REPORT,
    metavar="[FILE]",
    help=f"Measure every device, and write what was found to a file to send, {REPORT} if unnamed.",
)
def doctor_command(output: Output, report: Path | None, seed: int | None) -> None:
    """Check this computer, and say what to install for what is missing.

    It looks at Python, the packages and their versions, the compiler, memory and disk, and the
    drivers of CUDA, Metal, OpenCL and Vulkan, and lets each device compute something with a known
    answer.
    The exit status is 0 if models can be compiled and run on the processor; a graphics processor is
    extra.

    With --report it also compiles the small model for every graphics processor, tries each of its
    kernels, trains and writes there, compares the numbers with the processor's, and writes all of
    it to a file that names neither you nor this computer. It takes some minutes.
    """
    runtime = check_runtime()
    basics = [check_python(), *check_packages(), runtime, check_compiler()]
    room = check_room(_cache_folder())
    _show(output, "This computer", [*basics, *room])
    runs = all(row.state == OK for row in basics)
    checks, devices, usable = [*basics, *room], [], {}
    for kind, api in APIS.items() if runtime.state == OK else ():
        rows, found = _graphics(api)
        _show(output, f"\nGraphics processors, through {api.name}", rows)
        checks += rows
        devices += [{**device, "kind": kind} for device in found]
        usable[kind] = [
            row.subject for row in rows if row.subject.startswith(f"{kind}:") and row.state == OK
        ]
    output.say()
    if runs:
        output.say("[green]The processor is ready[/]: models compile and run with --target cpu.")
    else:
        output.say("[red]The processor's way is not whole[/]: mend what is listed above.")
    for kind, names in usable.items():
        if names:
            ready = f"[green]{APIS[kind].name} is ready[/] on {', '.join(names)}"
            output.say(f"{ready}; see: fabric devices")
        else:
            output.say(f"{APIS[kind].name} has no device here that works.")
    result = {
        "cpu": runs,
        **usable,
        "checks": [asdict(row) for row in checks],
        "devices": devices,
    }
    if not runs:
        raise CommandEnded(EXIT_ERROR, result)
    if report is not None:
        gathered = gather(output, [asdict(row) for row in checks], devices)
        result["report"] = _write(output, report, gathered)
    output.result(result)


def _write(output: Output, path: Path, content: dict[str, Any]) -> str:
    """Write the report, say what is in it and what to do with it, and return its path."""
    from ..runtime.files import atomic_write

    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")
    output.say()
    for device in content["measured"]:
        for line in kernel_lines(device.get("kernels", [])):
            output.say(f"{device['device']}: {_plain(line)}")
        speeds = device.get("speeds")
        if speeds is None:
            output.say(f"{device['device']}: {_plain(device['error'])}")
            continue
        numbers = device.get("numbers", [])
        wrong = [each["of"] for each in numbers if not each["passed"]]
        agree = f"{len(numbers) - len(wrong)} of {len(numbers)} numbers agree; " if numbers else ""
        told = ", ".join(f"{name} {rate:,.0f}" for name, rate in speeds.items())
        output.say(f"{device['device']}: {agree}tokens a second: {told}")
    output.say(f"Written to {_plain(str(path))}. It holds no name, path or number of yours: "
               "look through it, and attach it to an issue of the project.")  # fmt: skip
    return str(path)


def _graphics(api: DeviceApi) -> tuple[list[Row], list[dict[str, Any]]]:
    backend = check_backend(api)
    if backend.state != OK:
        return [backend, *check_drivers(api)], []
    rows, devices = check_devices(api)
    return [backend, *check_drivers(api), *rows, *check_unused(api, devices)], devices


def _show(output: Output, heading: str, rows: list[Row]) -> None:
    """Print one part of the findings, each with its remedy below."""
    output.say(f"[bold]{heading}[/]")
    table = output.table("", "", "")
    for row in rows:
        colour = COLOURS.get(row.state, "red")
        table.add_row(f"  {row.subject}", f"[{colour}]{row.state}[/]", _plain(row.detail))
        if row.remedy:
            table.add_row("", "", f"[bold]{_plain(row.remedy)}[/]")
    output.show(table)


def _plain(text: str) -> str:
    """Keep brackets such as those of extras from being read as markup."""
    return text.replace("[", r"\[")


def _cache_folder() -> Path:
    """Where compiled modules and backends are kept."""
    named = os.environ.get("BITFABRIC_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "bitfabric"
