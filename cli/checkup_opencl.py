"""What `fabric doctor` looks at for OpenCL: the backend, the drivers, and each device's answers.

A driver that crashes or hangs must not take the doctor with it, so the drivers are asked in a
process of their own, which prints one JSON object a line as it goes: `opencl_probe`.
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

from ..targets.opencl_device import judge, on_android
from .checkup import MISSING, OK, PROBLEM, Row

ICD_FOLDER = "/etc/OpenCL/vendors"
VARIABLES = (
    "FABRIC_DEVICE", "FABRIC_OPENCL_LIB", "OCL_ICD_VENDORS", "OCL_ICD_FILENAMES",
    "OCL_ICD_ASSUME_ICD_EXTENSION", "OPENCL_VENDOR_PATH", "POCL_DEVICES", "RUSTICL_ENABLE",
    "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
SECONDS = 180
"""How long a driver may take to compile and run the small kernels, on a slow phone."""
PHONE = (
    "Run: pkg install ocl-icd opencl-vendor-driver, or set FABRIC_OPENCL_LIB to the phone's own "
    "libOpenCL.so, which lies in /vendor/lib64."
)
MAKERS = {
    "0x10de": (
        "NVIDIA",
        "nvidia",
        "Run: apt install nvidia-opencl-icd (Debian), or the libnvidia-compute package of your "
        "driver's version (Ubuntu).",
    ),
    "0x8086": ("Intel", "intel", "Run: apt install intel-opencl-icd"),
    "0x1002": (
        "AMD",
        "amd|advanced micro",
        "Install ROCm's OpenCL (rocm-opencl-icd or AMD's rocm-opencl), or apt install "
        "mesa-opencl-icd and set RUSTICL_ENABLE=radeonsi.",
    ),
}
"""Of graphics processors on the PCI bus: the maker, how a device of its is known, the driver."""


def check_backend() -> Row:
    """Look at the native backend, which is built on first need."""
    from ..runtime.backends import backend_status

    status = backend_status("opencl")
    if status["problem"]:
        return Row("OpenCL backend", PROBLEM, status["problem"], status["remedy"])
    if status["library"]:
        return Row("OpenCL backend", OK, f"{status['origin']}: {status['library']}")
    return Row("OpenCL backend", OK, f"will be built on first use, by {status['compiler']}")


def check_drivers(folder: str | None = None) -> list[Row]:
    """Look at the list of installed drivers and at the variables that change which are used."""
    rows = []
    listed = Path(folder or os.environ.get("OCL_ICD_VENDORS") or ICD_FOLDER)
    files = sorted(listed.glob("*.icd")) if listed.is_dir() else []
    names = []
    for file in files:
        try:
            names.append(f"{file.name} ({file.read_text(encoding='utf-8').strip()})")
        except OSError as error:
            names.append(f"{file.name} (unreadable: {error.strerror})")
    if names:
        rows.append(Row("OpenCL drivers", OK, f"{listed}: {', '.join(names)}"))
    elif not on_android() and not os.environ.get("FABRIC_OPENCL_LIB"):
        rows.append(
            Row(
                "OpenCL drivers",
                MISSING,
                f"{listed} lists none",
                "Install your graphics processor's, or one for the processor: "
                "apt install ocl-icd-libopencl1 pocl-opencl-icd",
            )
        )
    there = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    if there:
        rows.append(Row("environment", OK, ", ".join(there)))
    return rows


def check_devices() -> tuple[list[Row], list[dict[str, Any]]]:
    """Ask the drivers for their devices and let each compute, in a process of its own.

    Returns
    -------
    rows : list of Row
        One a device, and one where there is none or the drivers failed.
    devices : list of dict
        Their descriptions, as far as they came.
    """
    command = [sys.executable, "-m", f"{__package__}.opencl_probe"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        output, ended = run.stdout, run.returncode
    except subprocess.TimeoutExpired as late:
        output, ended = _text(late.stdout), None
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return rows_of(lines, ended)


def rows_of(
    lines: list[dict[str, Any]], ended: int | None
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Turn what the process said into rows, see :func:`check_devices`.

    Parameters
    ----------
    lines : list of dict
        What it printed: ``{"devices": [...]}`` or ``{"error", "remedy"}``, then for each device
        ``{"index", "checks": [...]}`` or ``{"index", "error"}``.
    ended : int, optional
        Its exit status, negative for a signal; None where it was still at it when time was up.
    """
    first = lines[0] if lines else {}
    if "error" in first:
        remedy = PHONE if on_android() else first["remedy"]
        return [Row("OpenCL devices", MISSING, first["error"], remedy)], []
    devices: list[dict[str, Any]] = first.get("devices", [])
    answers = {line["index"]: line for line in lines[1:]}
    rows = [_device_row(device, answers.get(device["index"]), ended) for device in devices]
    if not devices:
        rows = [Row("OpenCL devices", PROBLEM, f"the drivers {_ending(ended)}", _blame())]
    return rows, devices


def check_unused(devices: list[dict[str, Any]], bus: str = "/sys/bus/pci/devices") -> list[Row]:
    """Look for graphics processors on the PCI bus that no OpenCL driver offers."""
    makers = set()
    for folder in Path(bus).glob("*"):
        try:
            kind = (folder / "class").read_text().strip()
            maker = (folder / "vendor").read_text().strip()
        except OSError:
            continue
        # Display controllers, and the 3D controllers without a display of data centres.
        if kind.startswith("0x03") and maker in MAKERS:
            makers.add(maker)
    rows = []
    for name, pattern, remedy in (MAKERS[maker] for maker in sorted(makers)):
        known = (d for d in devices if d["type"] != "cpu")
        if not any(re.search(pattern, f"{d['vendor']} {d['platform']}", re.I) for d in known):
            rows.append(
                Row(f"{name} graphics", MISSING, "is in this computer, but no driver offers it",
                    remedy)
            )  # fmt: skip
    return rows


def _device_row(device: dict[str, Any], answer: dict[str, Any] | None, ended: int | None) -> Row:
    subject, verdict = f"opencl:{device['index']}", judge(device)
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
    return Row(subject, OK, f"{device['name']}: right in {names}; --target {verdict.target}")


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
