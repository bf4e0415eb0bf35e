"""Linking ``module.so``: with the system's C++ compiler, or with PyPI's ziglang."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from tvm import relax

from ..targets import FabricError, Target, host_triple, machine


def linker(target: Target) -> list[str]:
    """Return the command that links shared objects for a target.

    Raises
    ------
    FabricError
        If the machine has no C++ compiler, or the target is another machine's, and the package
        ziglang, which links for any, is not installed.
    """
    triple = host_triple(target)
    native = triple.startswith(machine())
    for name in ("c++", "g++", "clang++", "cc") if native else ():
        found = shutil.which(name)
        if found:
            return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", triple]
    raise FabricError(
        "There is no linker on this machine: no C++ compiler was found."
        if native
        else f"There is no linker for {target.name} on this machine, which is {machine()}.",
        ("Install one (apt install g++), or: " if native else "Install one for any machine: ")
        + "pip install 'bitfabric[linker]'",
    )


def link(executable: relax.VMExecutable, path: Path, target: Target) -> None:
    """Write an executable as a shared library that TVM's runtime loads."""
    command = linker(target)

    def create_shared(output: str, objects: list[str], **_: object) -> None:
        run = subprocess.run(
            [*command, "-shared", "-fPIC", "-o", output, *objects],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise FabricError(
                f"Linking {path.name} failed: {run.stderr.strip().splitlines()[-1]}"
                if run.stderr.strip()
                else f"Linking {path.name} failed with status {run.returncode}.",
                f"Check that this command works: {' '.join(command)} --version",
            )

    create_shared.output_format = "so"  # type: ignore[attr-defined]
    executable.export_library(str(path), fcompile=create_shared)
