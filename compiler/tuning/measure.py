"""Timing candidates in another process, whatever becomes of it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import tvm
from tvm import tirx

from ...targets import FabricError, Target
from .arguments import arguments_of
from .kernels import Kernel

PROGRAM = (sys.executable, "-m", "bitfabric.cli.tune_worker")
START_SECONDS = 120.0
"""The process imports TVM and opens a device within this."""
RECONNECT_SECONDS = 300.0
"""A worker whose device is elsewhere finds it again, or another, within this."""


@dataclass(frozen=True)
class Measured:
    """A candidate that computes the right numbers.

    Attributes
    ----------
    seconds, default_seconds : float
        Median times of a call, of it and of the default schedule beside it.
    ratio : float
        Median of its time by the default's, turn by turn.
    low, high : float
        The interval of 95 % around that median.
    """

    seconds: float
    default_seconds: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Failed:
    """A candidate that is of no use.

    Attributes
    ----------
    kind : str
        ``"crash"``, ``"hang"``, ``"wrong numbers"`` or ``"build"``.
    why : str
        A few words more.
    """

    kind: str
    why: str


class DeviceLostError(FabricError):
    """No device is left that candidates could run on; what was found so far is kept."""


class Measurer:
    """Gives candidates to a worker, and starts another where one is lost; a context manager.

    Parameters
    ----------
    target : Target
        What the candidates are for.
    limit : float
        Seconds that building and checking one may take.
    program : sequence of str
        The worker's command line.
    device : str or None
        The address of a device elsewhere, ``rpc://…``.

    Attributes
    ----------
    notes : list of str
        What the worker has to tell, such as devices that were skipped.
    """

    def __init__(
        self,
        target: Target,
        limit: float = 30.0,
        program: Sequence[str] = PROGRAM,
        device: str | None = None,
    ) -> None:
        self.target, self.limit = target, limit
        self._program = [*program, device] if device is not None else list(program)
        # The worker itself knows when a candidate hangs there; it may wait for another device.
        self._patience = limit if device is None else limit + RECONNECT_SECONDS
        self.notes: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._kernel: dict[str, Any] | None = None

    def __enter__(self) -> Measurer:
        """Nothing is started before it is needed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the worker."""
        self._end()

    def take(self, kernel: Kernel, function: tirx.PrimFunc) -> float:
        """Go on with a kernel and its default schedule; return that one's time, in seconds.

        Raises
        ------
        FabricError
            If the default schedule itself does not run.
        """
        arguments = arguments_of(kernel.signature.kernel, kernel.arguments)
        return self.take_function(function, arguments, kernel.signature.title)

    def take_function(
        self, function: tirx.PrimFunc, arguments: list[dict[str, Any]], title: str
    ) -> float:
        """Do the same for any laid-out function and arguments for it."""
        self._kernel = {
            "do": "kernel",
            "function": tvm.ir.save_json(function),
            "arguments": arguments,
        }
        answer = self._kernel_answer()
        if isinstance(answer, Failed):
            self._kernel = None
            self._unless_lost(answer)
            raise FabricError(
                f"The kernel {title} fails by its default schedule: {answer.kind} ({answer.why}).",
                f"Check the device with: fabric doctor --target {self.target.name}",
            )
        return float(answer["seconds"])

    def compare(
        self, function: tirx.PrimFunc, seconds: float = 0.15, repeats: int = 1
    ) -> Measured | Failed:
        """Build a candidate, check its numbers, and time it for some seconds.

        Of several `repeats`, with arguments elsewhere in memory, the worst is returned.

        Raises
        ------
        FabricError
            If no worker can be started any more.
        """
        if self._process is None and self._kernel is not None:
            lost = self._kernel_answer()
            if isinstance(lost, Failed):
                self._unless_lost(lost)
                raise DeviceLostError(
                    f"The device has become unusable: {lost.kind} ({lost.why}).",
                    "What was found so far is kept; go on with --resume.",
                )
        request = {"do": "compare", "function": tvm.ir.save_json(function), "seconds": seconds}
        answer = self._ask({**request, "repeats": repeats}, 2 * repeats * seconds)
        if isinstance(answer, Failed):
            self._unless_lost(answer)
            return answer
        return Measured(**answer)

    def _unless_lost(self, failed: Failed) -> None:
        """Raise where there is no device any more."""
        if failed.kind == "lost":
            cause, _, remedy = failed.why.partition("\n")
            raise DeviceLostError(cause, remedy)

    def _kernel_answer(self) -> dict[str, Any] | Failed:
        assert self._kernel is not None
        if self._process is None:
            self._start()
        return self._ask(self._kernel)

    def _start(self) -> None:
        self._answers = queue.Queue()
        # Ctrl-C in the terminal is for the tuner, which then ends its worker.
        self._process = subprocess.Popen(
            self._program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=os.name == "posix",
        )
        reader = threading.Thread(
            target=_read, args=(self._process.stdout, self._answers), daemon=True
        )
        reader.start()
        target = asdict(self.target) | {"features": sorted(self.target.features)}
        opened = self._ask({"do": "open", "target": target}, START_SECONDS - self.limit)
        if isinstance(opened, Failed):
            raise FabricError(
                f"The device for {self.target.name} could not be opened: {opened.why}.",
                "See what there is with: fabric devices",
            )

    def _ask(self, request: dict[str, Any], more: float = 0.0) -> dict[str, Any] | Failed:
        """Let the worker do something within the limit and some seconds more."""
        process, limit, patience = self._process, self.limit + more, self._patience + more
        assert process is not None
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            told = {**request, "limit": limit, "patience": patience}
            print(json.dumps(told), file=process.stdin, flush=True)
        try:
            line = self._answers.get(timeout=patience)
        except queue.Empty:
            self._end()
            return Failed("hang", f"no answer within {patience:.0f} s")
        except BaseException:
            # Interrupted: an answer that comes later would be taken for that to another request.
            self._end()
            raise
        if line is None:
            status = process.wait()
            self._end()
            return Failed("crash", _ending(status))
        answer = json.loads(line)
        self.notes += answer.pop("notes", [])
        return Failed(answer["failed"], answer["why"]) if "failed" in answer else answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()


def _read(stream: Any, answers: queue.Queue[str | None]) -> None:
    """Pass a worker's lines on, and at their end None."""
    with suppress(ValueError, OSError):
        for line in stream:
            answers.put(line)
    answers.put(None)


def _ending(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
