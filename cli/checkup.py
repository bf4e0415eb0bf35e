"""What `fabric doctor` looks at on any computer: Python, packages, the linker, memory and disk."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from ..targets import FabricError
from ..targets.device_api import on_android
from .devices import describe_cpu

OK, MISSING, PROBLEM = "ok", "missing", "problem"
PYTHONS = ((3, 10), (3, 13))
LINKERS = ("c++", "g++", "clang++", "cc")
LEAST_MEMORY_MIB, LEAST_DISK_MIB = 1024, 2048
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;\s*(.*))?")
EXTRA = re.compile(r"extra == ['\"]([\w-]+)['\"]")


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    Attributes
    ----------
    subject : str
        What it is, such as "packages".
    state : str
        "ok", "missing" or "problem".
    detail : str
        What was found.
    remedy : str
        What to do; empty where nothing is wrong.
    """

    subject: str
    state: str
    detail: str
    remedy: str = ""


def install_command(debian: str, termux: str) -> str:
    """Return the command that installs packages of this system."""
    return f"pkg install {termux}" if on_android() else f"apt install {debian}"


def check_python() -> Row:
    """Look at the version of Python."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]} at {sys.executable}"
    low, high = (".".join(map(str, pair)) for pair in PYTHONS)
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Row("Python", OK, here)
    return Row("Python", PROBLEM, here, f"Install Python {low} to {high}; ./start finds it.")


def check_packages(distribution: str = "bitfabric") -> list[Row]:
    """Look at the packages that fabric needs, and at the extras."""
    try:
        listed = requires(distribution) or []
    except PackageNotFoundError:
        return [
            Row(
                "packages",
                PROBLEM,
                f"{distribution} is not installed",
                "Install it: pip install bitfabric",
            )
        ]
    needed, extras = _requirements(listed)
    wrong = [(name, pin, found) for name, pin in needed if not fits(found := _installed(name), pin)]
    rows = [
        Row(
            f"package {name}",
            MISSING if found is None else PROBLEM,
            f"{'not installed' if found is None else found}, and {pin or 'any version'} is needed",
            f"Run: pip install '{name}{pin}'",
        )
        for name, pin, found in wrong
    ]
    pins = [f"{name} {_installed(name)}" for name, pin in needed if pin.startswith("==")]
    if not rows:
        rows = [Row("packages", OK, f"all {len(needed)}, with {' and '.join(pins)}")]
    lacking = [
        extra
        for extra, names in extras.items()
        if extra not in ("test", "lint") and any(_installed(name) is None for name in names)
    ]
    told = "; ".join(f"pip install 'bitfabric[{extra}]'" for extra in lacking)
    return [*rows, Row("extras", OK, f"to add, where wanted: {told}" if told else "all there")]


def fits(found: str | None, pin: str) -> bool:
    """Return whether an installed version is what a requirement asks, ``==`` or ``>=``."""
    if found is None:
        return False
    for clause in filter(None, (part.strip() for part in pin.split(","))):
        if clause.startswith("==") and found != clause[2:].strip():
            return False
        if clause.startswith(">=") and _numbers(found) < _numbers(clause[2:]):
            return False
    return True


def check_runtime() -> Row:
    """Load TVM's runtime library, which every bundle runs on."""
    from ..runtime.library import load_runtime

    try:
        load_runtime()
    except (FabricError, OSError) as error:
        remedy = getattr(
            error, "remedy", "Install it anew: pip install --force-reinstall apache-tvm"
        )
        return Row("runtime", PROBLEM, getattr(error, "cause", str(error)), remedy)
    return Row("runtime", OK, f"TVM's runtime library {_installed('apache-tvm')} loads")


def check_compiler() -> Row:
    """Look for TVM's compiler and a linker, by linking an empty library."""
    spec = find_spec("tvm")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    if not any(list(Path(folder, "lib").glob("*tvm_compiler*")) for folder in folders):
        return Row(
            "compiler",
            MISSING,
            "TVM's compiler library is not there: bundles run, but none can be made",
            "Run: pip install apache-tvm==0.27.0.post1, or compile on another computer.",
        )
    command = next(([path] for name in LINKERS if (path := shutil.which(name))), None)
    if command is None and find_spec("ziglang") is not None:
        command = [sys.executable, "-m", "ziglang", "cc"]
    install = install_command("g++", "clang")
    remedy = f"Run: {install}, or: pip install 'bitfabric[linker]'"
    if command is None:
        return Row("compiler", MISSING, "no C++ compiler to link bundles with", remedy)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.c")
        source.write_text("int fabric_doctor(void) { return 0; }\n")
        run = subprocess.run(
            [*command, "-shared", "-fPIC", "-o", str(source.with_suffix(".so")), str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        said = (run.stderr.strip().splitlines() or ["no message"])[-1]
        return Row("compiler", PROBLEM, f"{' '.join(command)} can't link: {said}", remedy)
    return Row("compiler", OK, f"TVM's, and {' '.join(command)} links")


def check_room(folder: Path) -> list[Row]:
    """Look at the processor, the memory and the disk that `folder` lies on."""
    cpu = describe_cpu()
    rows = [Row("processor", OK, f"{cpu['name']}, {cpu['cores']} cores; target {cpu['target']}")]
    free = cpu["memory_available_mib"]
    if free is not None:
        short = free < LEAST_MEMORY_MIB
        rows.append(
            Row(
                "memory",
                PROBLEM if short else OK,
                f"{free / 1024:.1f} GiB free of {cpu['memory_mib'] / 1024:.1f} GiB",
                "Close other programs; `fabric estimate` says what a model needs." if short else "",
            )
        )
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder).free / 2**20
    short = disk < LEAST_DISK_MIB
    remedy = "Free some space, or set BITFABRIC_CACHE to a folder elsewhere." if short else ""
    rows.append(
        Row("disk", PROBLEM if short else OK, f"{disk / 1024:.1f} GiB free for {folder}", remedy)
    )
    return rows


def _requirements(listed: list[str]) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """Split the metadata's requirements into (name, pin) always needed, and names by extra."""
    needed: list[tuple[str, str]] = []
    extras: dict[str, list[str]] = {}
    for line in listed:
        found = REQUIREMENT.match(line)
        if found is None:
            continue
        name, pin, marker = found[1], found[2].strip().strip("()"), found[3] or ""
        extra = EXTRA.search(marker)
        if extra:
            extras.setdefault(extra[1], []).append(name)
        elif "python_version < '3.11'" not in marker.replace('"', "'") or sys.version_info < (
            3,
            11,
        ):
            needed.append((name, pin))
    return needed, extras


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing: "1.26.4rc1" gives (1, 26, 4)."""
    return tuple(int(part) for part in re.findall(r"\d+", text.strip())[:3])
