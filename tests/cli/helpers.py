"""How the tests run `fabric`: always as a process of its own, as a person does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def environment() -> dict[str, str]:
    """This process's environment without what TVM was told here, for a plain terminal."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TVM_")}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "100"}


def fabric(
    *arguments: str | Path | float, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the command line `fabric ARGUMENTS`; give its status and what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "bitfabric.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )


def fabric_json(*arguments: str | Path | float, cwd: Path | None = None) -> dict[str, Any]:
    """Run `fabric ARGUMENTS --json`, which must succeed; give the last line of its output."""
    done = fabric(*arguments, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
