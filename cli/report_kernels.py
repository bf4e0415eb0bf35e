"""What became of a bundle's kernels on a device: tried by `kernel_probe`, and put into words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def tried(bundle: Path, expected: Path, environment: Mapping[str, str], seconds: float) -> Any:
    """Return what became of each kernel of a bundle, in a process of its own.

    Returns
    -------
    list of dict
        As the process prints them; the last one has ``"error"`` alone where the process ended
        before it had tried all.
    """
    command = [sys.executable, "-m", f"{__package__}.kernel_probe", str(bundle), str(expected)]
    try:
        run = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip
        said, ended = run.stdout, f"ended with status {run.returncode}"
        last = (run.stderr.strip().splitlines() or [""])[-1]
        ended, failed = f"{ended}: {last}", run.returncode != 0
    except subprocess.TimeoutExpired as late:
        out = late.stdout or b""
        said = out.decode(errors="replace") if isinstance(out, bytes) else out
        ended, failed = f"not done in {seconds:.0f} s", True
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [*found, {"error": ended, "passed": False}] if failed else found


def kernel_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what to say of the kernels that :func:`tried` returned: how many are right, and each
    that is not."""
    if not found:
        return []
    right = sum(bool(each["passed"]) for each in found)
    lines = [f"{right} of {len(found)} kernels give the right numbers"]
    for each in found:
        if not each["passed"]:
            wrong = each.get("name", "the process of the kernels")
            said = (
                f"off by {each['error']} in {each['shapes']}" if "name" in each else each["error"]
            )
            lines.append(f"{wrong}: {said}")
    return lines
