"""Devices and trackers on this machine: processes that tests start, freeze and kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bitfabric.runtime.remote import Address
from bitfabric.runtime.remote.exchange import Patience

PATIENCE = Patience(connect=3.0, answer=6.0, compute=60.0, retry=40.0, pause=0.2)


def free_port() -> int:
    """Return a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Process:
    """A process and its children, which form a group of their own; a context manager."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def signal(self, number: int) -> None:
        """Send all of it a signal."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it as kill -9 does, children included."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class Device(Process):
    """`fabric device serve`, listening when the constructor returns."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0, key: str = "k") -> None:
        super().__init__(
            [sys.executable, "-m", "bitfabric.cli", "device", "serve", "--port", str(port),
             "--key", key, "--folder", str(folder), *arguments]
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Serving at 127.0.0.1:"), line
        self.port = int(line.split()[2].rsplit(":", 1)[1])
        self.folder, self.key = folder, key

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port, self.key)

    def children(self) -> list[int]:
        """Return the processes of its sessions."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in path.read_text().split()]


class TvmTracker(Process):
    """TVM's own tracker, as `python -m tvm.exec.rpc_tracker` starts it."""

    def __init__(self) -> None:
        self.port = free_port()
        super().__init__(
            [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1",
             "--port", str(self.port), "--port-end", str(self.port + 1), "--silent"]
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the tracker did not start")

    def address(self, key: str) -> Address:
        return Address("127.0.0.1", self.port, key)
