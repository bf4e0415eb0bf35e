"""The process in which candidates are built and run: it may crash or hang, the tuner does not.

It reads requests, a JSON object a line, and answers each with one. A device is opened once, for
all candidates; who runs them, on this machine or elsewhere, is not this module's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

import tvm

from ...targets import Target
from ...targets.target import Limits, MatrixUnit
from ..device_code import NAME as DEVICE_CODE
from ..host_code import NAME as HOST_CODE
from ..pipeline import tvm_target
from .arguments import Argument


class Failure(Exception):
    """A candidate is of no use.

    Parameters
    ----------
    kind : str
        ``"crash"``, ``"hang"`` or ``"lost"``: no device is left to run it.
    why : str
        A few words more.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class Runner(Protocol):
    """Runs built kernels on a device.

    Attributes
    ----------
    notes : list of str
        Sentences for whoever tunes; emptied by whoever passes them on.
    """

    notes: list[str]

    def take(self, kernel: Any, arguments: Sequence[Argument], limit: float) -> dict[str, Any]:
        """Run a default schedule and keep what it computes; gives ``seconds``."""
        ...

    def compare(self, kernel: Any, seconds: float, repeats: int, limit: float) -> dict[str, Any]:
        """Run a candidate beside it; gives what `measure.Measured` holds, or ``failed``."""
        ...


Open = Callable[[Target], Runner]
"""Opens the device of a target."""


def target_from_json(found: dict[str, Any]) -> Target:
    """Return the target that ``dataclasses.asdict`` described."""
    return Target(
        **{
            **found,
            "features": frozenset(found["features"]),
            "limits": Limits(**found["limits"]) if found["limits"] else None,
            "matrices": tuple(MatrixUnit(**unit) for unit in found["matrices"]),
        }
    )


def serve(requests: IO[str], answers: IO[str], open_runner: Open) -> None:
    """Answer requests until there are no more.

    Parameters
    ----------
    requests, answers : text streams
        Lines of JSON.
    open_runner : callable
        Opens the device of a target.
    """
    target: Target | None = None
    runner: Runner | None = None
    for line in requests:
        request = json.loads(line)
        # Whoever asked may be gone by the time a candidate hangs; then nobody else ends it.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 2 * request["patience"])
        try:
            if request["do"] == "open":
                target = target_from_json(request["target"])
                runner = open_runner(target)
                answer: dict[str, Any] = {}
            elif target is None or runner is None:
                raise ValueError("no device is open")
            else:
                answer = _answer(request, built(request["function"], target), runner)
        except Failure as failure:
            answer = {"failed": failure.kind, "why": str(failure)}
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            answer = {"failed": "build", "why": lines[-1][:200]}
        if runner is not None and runner.notes:
            answer["notes"], runner.notes = runner.notes, []
        print(json.dumps(answer), file=answers, flush=True)


def _answer(request: dict[str, Any], kernel: Any, runner: Runner) -> dict[str, Any]:
    """Let a device do what a request asks for."""
    if request["do"] == "kernel":
        return runner.take(kernel, request["arguments"], request["limit"])
    return runner.compare(kernel, request["seconds"], request["repeats"], request["limit"])


def built(function: str, target: Target) -> tvm.runtime.Executable:
    """Return a laid-out function, given as TVM's JSON, as code for a target: ``["main"]`` runs it.

    Raises
    ------
    Exception
        Whatever the compiler has against it.
    """
    loaded = tvm.ir.load_json(function).with_attr("global_symbol", "main")
    pipeline = HOST_CODE if target.family == "cpu" else DEVICE_CODE
    module = tvm.IRModule({"main": loaded})
    return tvm.compile(module, target=tvm_target(target), tir_pipeline=pipeline)


def run(open_runner: Open) -> None:
    """Serve standard input and output; what anything else prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers, open_runner)
