"""Ctrl-C without loss: the first asks, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from ..targets import FabricError


class TrainingInterrupted(FabricError):
    """A training was stopped by the person, and saved.

    Parameters
    ----------
    step : int
        The last finished step, from which `--resume` goes on.
    folder : str
        The adapter's folder.
    """

    exit_code = 130

    def __init__(self, step: int, folder: str) -> None:
        super().__init__(
            f"The training was stopped after step {step}; everything is saved in {folder}.",
            "Go on with the same command and --resume.",
        )
        self.step = step


class StopRequest:
    """While entered, SIGINT and SIGTERM set `asked` and let the work come to a good place.

    A second signal ends the process's patience: it raises KeyboardInterrupt at once. Outside the
    main thread, where Python takes no signal handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
