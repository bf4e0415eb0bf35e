"""The processor beside a device: it runs the code that launches the device's kernels."""

from __future__ import annotations

import sys
from typing import Any

from .cpu import machine
from .target import Target


def host_triple(target: Target) -> str:
    """Return the target triple of the code that a target's module holds for the processor."""
    if "mtriple" in target.options:
        return str(target.options["mtriple"])
    return target.host or this_host()


def this_host() -> str:
    """Return this machine's triple."""
    system = {"darwin": "apple-macos", "win32": "windows-gnu"}.get(sys.platform, "linux-gnu")
    return f"{machine()}-{system}"


def host_options(target: Target) -> dict[str, Any]:
    """Return the TVM target of the processor, in its plainest form: it only launches kernels."""
    if target.family == "cpu":
        return dict(target.options)
    triple = host_triple(target)
    options: dict[str, Any] = {"kind": "llvm", "mtriple": triple}
    return options | ({"mcpu": "x86-64"} if triple.startswith("x86_64") else {})
