"""A Linux on 64-bit Arm in a folder, and a Python there that an emulator runs.

Debian's packages are downloaded and unpacked, never installed; numpy is PyPI's. All of it is kept
between runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / ".pytest_cache" / "aarch64"
PYTHON = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgcc-s1")
POCL = ("pocl-opencl-icd", "ocl-icd-libopencl1")
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")


def unpack(name: str, architecture: str, packages: tuple[str, ...]) -> Path:
    """Download Debian's packages and all they need into a root folder; skip where that can't be."""
    root = FOLDER / name
    if root.is_dir():
        return root
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs Debian's packages for aarch64, and there is no apt-get")
    work = FOLDER / f".{name}"
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("state/lists/partial", "cache/archives/partial", "root"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "APT::Install-Recommends": "false",
        "Debug::NoLocking": "true",
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
    }
    apt = ["apt-get", "-qq", *(word for k, v in settings.items() for word in ("-o", f"{k}={v}"))]
    for command in (["update"], ["install", "--yes", "--download-only", *packages]):
        run = subprocess.run([*apt, *command], capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"Debian's packages for aarch64 can't be had: {run.stderr[-200:]}")
    for package in (work / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, work / "root"], check=True)
    (work / "root").rename(root)
    shutil.rmtree(work)
    return root


def emulator() -> str:
    """Return the emulator, installed or unpacked."""
    for name in EMULATORS:
        if found := shutil.which(name):
            return found
    root = unpack("emulator", "amd64", ("qemu-user-static",))
    return str(root / "usr" / "bin" / "qemu-aarch64-static")


def numpy_folder() -> Path:
    """Return a folder with numpy for aarch64, of this version."""
    folder = FOLDER / f"numpy-{np.__version__}"
    if not folder.is_dir():
        work = FOLDER / ".numpy"
        shutil.rmtree(work, ignore_errors=True)
        tags = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (28, 27, 24, 17)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *tags]
        command += ["--only-binary=:all:", "--python-version=3.11", "--dest", str(work)]
        run = subprocess.run([*command, f"numpy=={np.__version__}"], capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"numpy for aarch64 can't be had: {run.stderr[-200:]}")
        zipfile.ZipFile(next(work.glob("*.whl"))).extractall(work / "site")
        (work / "site").rename(folder)
        shutil.rmtree(work)
    return folder


def device_environment(root: Path, work: Path) -> dict[str, str]:
    """What PoCL in a root folder needs to run under the emulator.

    It finds its own files by where its library lies, and calls `ld`, which the emulator would look
    for on this machine: LLD stands in for it. What a kernel calls, the process has loaded.
    """
    linker = work / "bin" / "ld"
    linker.parent.mkdir()
    linker.write_text(
        "#!/bin/sh\n"
        'for word; do shift; case "$word" in -l*) ;; *) set -- "$@" "$word";; esac; done\n'
        f'exec {shlex.quote(sys.executable)} -m ziglang ld.lld "$@"\n'
    )
    linker.chmod(0o755)
    return {
        "PATH": f"{linker.parent}:{os.defpath}",
        "HOME": str(work),
        "POCL_CACHE_DIR": str(work / "kernels"),
        "LD_LIBRARY_PATH": str(root / "usr" / "lib" / "aarch64-linux-gnu"),
    }


def run_python(
    root: Path,
    program: str,
    *arguments: str | Path,
    environment: dict[str, str] | None = None,
    timeout: int = 540,
) -> subprocess.CompletedProcess[str]:
    """Run a program with the Python of a root folder and numpy: no packages, no environment.

    Its output and errors are kept; its status must be 0.
    """
    prefix = f"import sys; sys.path.insert(0, {str(numpy_folder())!r})\n"
    command = [emulator(), "-cpu", "max", "-L", str(root), str(root / "usr/bin/python3.11")]
    few = {"OPENBLAS_NUM_THREADS": "1", "TVM_NUM_THREADS": "2", "PATH": os.defpath}
    done = subprocess.run(
        [*command, "-I", "-S", "-c", prefix + program, *map(str, arguments)],
        env={**few, **(environment or {})}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done
