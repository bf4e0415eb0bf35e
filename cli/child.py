"""One fabric command in a process of its own, so that what it needs is its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import CommandEnded
from .output import EXIT_INTERRUPTED, Output


def run_fabric(
    output: Output, arguments: Sequence[str], *, folder: Path, shown: Sequence[str]
) -> dict[str, Any]:
    """Run `fabric ARGUMENTS --json` in `folder`; its words pass through, its result comes back.

    A process of its own keeps the compiler out of the memory of the training that follows it,
    and the peak memory that the training reports is its own.

    Parameters
    ----------
    output : Output
        Where the command and its words are shown.
    arguments : sequence of str
        The command line after `fabric`.
    folder : Path
        The working directory.
    shown : sequence of str
        The command line as a person would type it.

    Returns
    -------
    dict
        The JSON object that the command printed last.

    Raises
    ------
    CommandEnded
        Where the command failed (it has told why) or was interrupted.
    """
    console = output.console
    console.print(f"$ fabric {_shown(shown)}", style="dim", markup=False, soft_wrap=True)
    output.stream.flush()
    command = [sys.executable, "-m", "bitfabric.cli", *arguments, "--json"]
    if output.debug:
        command.append("--debug")
    # The words of a --json command are on its standard error: they go where ours go.
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=output.stream.fileno(), text=True
    )
    try:
        stdout, _ = process.communicate()
    except KeyboardInterrupt:
        # The same Ctrl-C has reached the child, which now saves; do not cut it short.
        process.communicate()
        raise CommandEnded(EXIT_INTERRUPTED, {"error": "interrupted"}) from None
    lines = stdout.strip().splitlines()
    result = json.loads(lines[-1]) if lines else {}
    if process.returncode != 0:
        raise CommandEnded(process.returncode, result)
    return result


def _shown(arguments: Sequence[str]) -> str:
    r"""Quote a command line for people; a line break is typed as \n, which fabric understands."""
    plain = [word.replace("\n", r"\n") for word in arguments]
    return " ".join(
        f'"{word}"' if " " in word or "\\" in word else shlex.quote(word) for word in plain
    )
