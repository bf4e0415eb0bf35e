"""TensorBoard event files, written with TensorBoard's own record writer (extra `tensorboard`)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..targets import FabricError
from .files import write_error


class EventFile:
    """One run's scalars for TensorBoard.

    Parameters
    ----------
    folder : Path
        The log folder, made where it is missing.
    purge_from : int
        Step from which TensorBoard forgets what earlier files of this folder say: a resumed run
        computes those steps again, a new one all of them.

    Raises
    ------
    FabricError
        Where TensorBoard is not installed.
    FileError
        Where the folder cannot be written.
    """

    def __init__(self, folder: Path, purge_from: int = 0) -> None:
        # Here, not above: protocol buffers cost memory, and few runs ask for these files.
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise FabricError(
                "--log-dir writes TensorBoard's files, and TensorBoard is not installed.",
                "Install it: pip install 'bitfabric[tensorboard]', or leave --log-dir out.",
            ) from error
        self._event, self._summary = event_pb2, summary_pb2
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(open(self._path, "wb", buffering=0))  # noqa: SIM115
        except OSError as error:
            raise write_error(folder, error) from error
        self._write(file_version="brain.Event:2")
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=purge_from, session_log=started)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the scalars of one step, each under its tag.

        Raises
        ------
        FileError
            Where the disk is full.
        """
        values = [
            self._summary.Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
        ]
        self._write(step=step, summary=self._summary.Summary(value=values))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        try:
            self._records.write(event.SerializeToString())
        except OSError as error:
            raise write_error(self._path, error) from error
