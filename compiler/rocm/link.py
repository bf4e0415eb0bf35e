"""Linking a code object with LLD as PyPI's ``ziglang`` brings it: no ROCm is needed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from .errors import failure


def has_linker() -> bool:
    """Return whether the linker is installed."""
    return importlib.util.find_spec("ziglang") is not None


def check_linker() -> None:
    """See that the linker is installed.

    Raises
    ------
    RocmCompilerError
        If it is not.
    """
    if not has_linker():
        raise failure(
            "The linker for ROCm's code objects is not installed: the package ziglang is missing.",
            "Install it: pip install 'bitfabric[linker]'",
        )


def link_object(content: bytes, folder: Path) -> bytes:
    """Return the code object of an object file.

    Parameters
    ----------
    content : bytes
        What LLVM wrote.
    folder : pathlib.Path
        For files that are of no use afterwards.

    Raises
    ------
    RocmCompilerError
        If the linker fails, as it does where a kernel calls what is not there.
    """
    check_linker()
    source, target = folder / "kernels.o", folder / "kernels.co"
    source.write_bytes(content)
    command = [sys.executable, "-m", "ziglang", "ld.lld", "--no-undefined", "-shared"]
    command += ["--strip-debug", str(source), "-o", str(target)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        lines = run.stderr.strip().splitlines() or [f"status {run.returncode}"]
        raise failure(
            f"Linking the kernels for ROCm failed: {lines[0]}.",
            "This is a fault of fabric's: report it, and use --target vulkan:auto until it is "
            "mended.",
        )
    return target.read_bytes()
