"""What `fabric doctor` looks at for an API: its backend, its drivers, and each device's answers.

A driver that crashes or hangs must not take the doctor with it, so the drivers are asked in a
process of their own, which prints one JSON object a line as it goes: `device_probe`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..targets import DeviceApi
from ..targets.device_api import is_processor, on_android
from .checkup import MISSING, OK, PROBLEM, Row
from .drivers import DRIVERS, MAKERS, SHARED_VARIABLES

SECONDS = 180
"""How long a driver may take to compile and run the small kernels, on a slow phone."""


def check_backend(api: DeviceApi) -> Row:
    """Look at the native backend, which is built on first need."""
    from ..runtime.backends import backend_status

    status, subject = backend_status(api.kind), f"{api.name} backend"
    if status["problem"]:
        return Row(subject, PROBLEM, status["problem"], status["remedy"])
    if status["library"]:
        return Row(subject, OK, f"{status['origin']}: {status['library']}")
    return Row(subject, OK, f"will be built on first use, by {status['compiler']}")


def check_drivers(api: DeviceApi) -> list[Row]:
    """Look at the list of installed drivers and at the variables that change which are used."""
    drivers, rows = DRIVERS[api.kind], []
    named = os.environ.get(drivers.folder_variable)
    folders = [Path(f).expanduser() for f in ([named] if named else drivers.folders)]
    there = {folder: _listed(folder, drivers.pattern) for folder in folders}
    found = "; ".join(f"{folder}: {', '.join(names)}" for folder, names in there.items() if names)
    subject = f"{api.name} drivers"
    if found:
        rows.append(Row(subject, OK, found))
    elif (
        folders
        and not on_android()
        and not any(name in os.environ for name in drivers.variables if name.startswith("FABRIC_"))
    ):
        rows.append(Row(subject, MISSING, f"{folders[0]} lists none", drivers.install))
    variables = (*SHARED_VARIABLES, *drivers.variables)
    told = [f"{name}={os.environ[name]}" for name in variables if name in os.environ]
    if told:
        rows.append(Row(f"{api.name} variables", OK, ", ".join(told)))
    return rows


def _listed(folder: Path, pattern: str) -> list[str]:
    """Return the drivers that a folder lists, with the libraries that they name."""
    names = []
    for file in sorted(folder.glob(pattern)):
        try:
            text = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            names.append(f"{file.name} (unreadable: {error.strerror})")
            continue
        library = re.search(r'"library_path"\s*:\s*"([^"]*)"', text)
        names.append(f"{file.name} ({library[1] if library else text.partition(chr(10))[0]})")
    return names


def check_devices(api: DeviceApi) -> tuple[list[Row], list[dict[str, Any]]]:
    """Ask the drivers for their devices and let each compute, in a process of its own.

    Returns
    -------
    rows : list of Row
        One a device, and one where there is none or the drivers failed.
    devices : list of dict
        Their descriptions, as far as they came.
    """
    command = [sys.executable, "-m", f"{__package__}.device_probe", api.kind]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        output, ended = run.stdout, run.returncode
    except subprocess.TimeoutExpired as late:
        output, ended = _text(late.stdout), None
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return rows_of(api, lines, ended)


def rows_of(
    api: DeviceApi, lines: list[dict[str, Any]], ended: int | None
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Turn what the process said into rows, see :func:`check_devices`.

    Parameters
    ----------
    api : DeviceApi
        Whose devices they are.
    lines : list of dict
        What it printed: ``{"devices": [...]}`` or ``{"error", "remedy"}``, then for each device
        ``{"index", "checks": [...]}`` or ``{"index", "error"}``.
    ended : int, optional
        Its exit status, negative for a signal; None where it was still at it when time was up.
    """
    first, subject = lines[0] if lines else {}, f"{api.name} devices"
    if "error" in first:
        remedy = DRIVERS[api.kind].phone if on_android() else first["remedy"]
        return [Row(subject, MISSING, first["error"], remedy)], []
    devices: list[dict[str, Any]] = first.get("devices", [])
    answers = {line["index"]: line for line in lines[1:]}
    rows = [_device_row(api, device, answers.get(device["index"]), ended) for device in devices]
    if not devices:
        rows = [Row(subject, PROBLEM, f"the drivers {_ending(ended)}", _blame())]
    return rows, devices


def check_unused(
    api: DeviceApi, devices: list[dict[str, Any]], bus: str = "/sys/bus/pci/devices"
) -> list[Row]:
    """Look for graphics processors on the PCI bus that no driver of the API offers."""
    makers = set()
    for folder in Path(bus).glob("*"):
        try:
            kind = (folder / "class").read_text().strip()
            maker = (folder / "vendor").read_text().strip()
        except OSError:
            continue
        # Display controllers, and the 3D controllers without a display of data centres.
        if kind.startswith("0x03") and maker in DRIVERS[api.kind].makers:
            makers.add(maker)
    rows = []
    for maker in sorted(makers):
        name, pattern = MAKERS[maker]
        known = (f"{d['vendor']} {d['name']}" for d in devices if not is_processor(d))
        if not any(re.search(pattern, names, re.I) for names in known):
            said = f"is in this computer, but no driver of {api.name} offers it"
            rows.append(Row(f"{name} graphics", MISSING, said, DRIVERS[api.kind].makers[maker]))
    return rows


def _device_row(
    api: DeviceApi, device: dict[str, Any], answer: dict[str, Any] | None, ended: int | None
) -> Row:
    subject, verdict = f"{api.kind}:{device['index']}", api.judge(device)
    if not verdict.used:
        return Row(subject, PROBLEM, f"{device['name']}: {verdict.reason}", "Update its driver.")
    if answer is None:
        said = f"{device['name']}: the driver {_ending(ended)} in the self-test"
        return Row(subject, PROBLEM, said, _blame())
    if "error" in answer:
        return Row(subject, PROBLEM, f"{device['name']}: {answer['error']}", _blame())
    wrong = [check for check in answer["checks"] if not check["passed"]]
    if wrong:
        said = ", ".join(f"{c['name']} (off by {c['error']})" for c in wrong)
        return Row(subject, PROBLEM, f"{device['name']} computes wrong: {said}", _blame())
    names = ", ".join(check["name"] for check in answer["checks"])
    said = f"right in {names}" if names else "not tried: that takes the compiler"
    return Row(subject, OK, f"{device['name']}: {said}; --target {verdict.target}")


def _ending(ended: int | None) -> str:
    """Say how the process of the drivers ended early."""
    if ended is None:
        return f"did not come back in {SECONDS} s"
    if ended < 0:
        return f"crashed ({signal.Signals(-ended).name})"
    return f"ended with status {ended}"


def _blame() -> str:
    return (
        "Update the phone's system, and with it the driver; until then use --target cpu."
        if on_android()
        else "Update or reinstall the driver; until then use --target cpu."
    )


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
