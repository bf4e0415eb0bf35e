"""Linking ``module.so``: with the system's C++ compiler, or with PyPI's ziglang."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from tvm import relax

from ..targets import FabricError


def linker() -> list[str]:
    """Return the command that links shared objects.

    Raises
    ------
    FabricError
        If the machine has neither a C++ compiler nor the package ziglang.
    """
    for name in ("c++", "g++", "clang++", "cc"):
        found = shutil.which(name)
        if found:
            return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise FabricError(
        "There is no linker on this machine: no C++ compiler was found.",
        "Install one (apt install g++), or: pip install 'bitfabric[linker]'",
    )


def link(executable: relax.VMExecutable, path: Path) -> None:
    """Write an executable as a shared library that TVM's runtime loads."""
    command = linker()

    def create_shared(output: str, objects: list[str], **_: object) -> None:
        run = subprocess.run(
            [*command, "-shared", "-fPIC", "-o", output, *objects],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise FabricError(
                f"Linking {path.name} failed: {run.stderr.strip().splitlines()[-1:]}",
                f"Check that this command works: {' '.join(command)} --version",
            )

    create_shared.output_format = "so"  # type: ignore[attr-defined]
    executable.export_library(str(path), fcompile=create_shared)
