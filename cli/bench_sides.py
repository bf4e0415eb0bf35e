"""The sides of a comparison: each a process of its own, which measures when it is asked."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..targets import FabricError

if TYPE_CHECKING:
    from ..runtime.measure import Work

PROGRAMS = Path(__file__).parents[1] / "bench" / "baselines"
"""The programs that ``--against NAME`` stands for, which speak the protocol as any other."""
REMOTE = "rpc://"
"""What the address of a device elsewhere begins with."""
NAMED = {"torch": "torch_baseline.py", "onnxruntime": "onnxruntime_baseline.py"}


class Side:
    """A program that measures: it prints a JSON object with ``tokens_per_s`` for a round.

    It is started for its first round. One that stays measures again for each line that it reads;
    one that ends is started again.

    Parameters
    ----------
    name : str
        What it is called in the table.
    command : sequence of str
        Its command line.
    environment : mapping
        Variables to set for it.
    wanted : str
        What an answer must have.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        wanted: str = "tokens_per_s",
    ) -> None:
        self.name, self._command, self._wanted = name, list(command), wanted
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._words = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115

    def __enter__(self) -> Side:
        """Nothing is started before it is needed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the program, and whatever it has started."""
        self._end()
        self._words.close()

    def round(self) -> dict[str, Any]:
        """Return what the program says of a round.

        Raises
        ------
        FabricError
            If it can't be started, fails, or says nothing of the kind.
        """
        if self._process is not None:
            found = self._asked()
            if found is not None:
                return found
        self._start()
        found = self._answer()
        if found is None:
            raise self._failure()
        return found

    def _start(self) -> None:
        try:
            # Ctrl-C in the terminal is for us alone: what we started ends with us.
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=self._words, text=True,
                start_new_session=os.name == "posix",
            )  # fmt: skip
        except OSError as error:
            raise FabricError(
                f"{self._command[0]} can't be started: {(error.strerror or str(error)).lower()}.",
                "Check the path, and that it is executable: chmod +x.",
            ) from error

    def _asked(self) -> dict[str, Any] | None:
        """Ask for a round; None where the program had come to its end, as it may."""
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            print(file=self._process.stdin, flush=True)
        found = self._answer()
        if found is None and self._process.wait():
            raise self._failure()
        return found

    def _answer(self) -> dict[str, Any] | None:
        """Return the next line that is an answer; None at the program's end."""
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and self._wanted in found:
                    return self._checked(found)
                if isinstance(found, dict) and "error" in found:
                    remedy = found.get("remedy") or "See what it needs, and try again."
                    raise FabricError(f"{self.name}: {found['error']}", str(remedy))
        return None

    def _checked(self, found: dict[str, Any]) -> dict[str, Any]:
        """Refuse a speed that is none, and memory that is none."""
        for name in ("tokens_per_s", "peak_memory_mib", "tokens"):
            value = found.get(name)
            if value is not None and not (_is_number(value) and value > 0):
                raise FabricError(
                    f"{self.name} says that {name} is {json.dumps(value)[:40]}.",
                    "It must be a number above 0; see `fabric bench --help`.",
                )
        return found

    def _failure(self) -> FabricError:
        """Say how the program failed."""
        assert self._process is not None
        status = self._process.wait()
        how = f"ended with status {status}" if status else f"printed no line with {self._wanted}"
        self._words.seek(0)
        lines = [line.strip() for line in self._words if line.strip()]
        said = f": {lines[-1][:300]}" if lines else ""
        return FabricError(
            f"{self.name} {how}{said}{'' if said.endswith('.') else '.'}",
            f"Try it by itself: {shlex.join(self._command)}",
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            if os.name == "posix":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def bundle_side(
    name: str, bundle: Path, work: Work, threads: int | None = None, device: str | None = None
) -> Side:
    """Return the side that measures a bundle, by this machine's runtime or a device elsewhere.

    Parameters
    ----------
    name : str
        What it is called.
    bundle : Path
        The bundle.
    work : Work
        What it does.
    threads : int, optional
        Of a processor; as many as there are by default.
    device : str, optional
        ``rpc://…`` names one elsewhere.
    """
    variables = {} if threads is None else {"TVM_NUM_THREADS": str(threads)}
    if device is not None and device.startswith(REMOTE):
        command = [sys.executable, "-m", "bitfabric.cli.bench_remote", str(bundle), device]
        return Side(name, [*command, json.dumps(asdict(work))], variables)
    command = [sys.executable, "-m", "bitfabric.runtime.measure", str(bundle)]
    return Side(name, [*command, *asked(work)], variables)


def asked(work: Work) -> list[str]:
    """Return a work as the arguments of a program that measures."""
    found = ["--work", work.kind, "--batch", str(work.batch), "--tokens", str(work.tokens)]
    return [*found, "--context", str(work.context)]


def program(against: str) -> tuple[str, list[str]]:
    """Return the name and the command line of what ``--against`` names, with its own arguments.

    Raises
    ------
    FabricError
        If there is no such program.
    """
    first, *rest = shlex.split(against) or [""]
    if first in NAMED:
        return against, [sys.executable, str(PROGRAMS / NAMED[first]), *rest]
    found = shutil.which(first)
    if found is None:
        raise FabricError(
            f"There is nothing to compare with at {first or 'an empty name'}.",
            f"Name {', '.join(NAMED)}, a bundle, or a program that may be executed.",
        )
    return Path(first).name, [found, *rest]
