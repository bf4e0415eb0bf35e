"""`fabric device serve`: accepts one client at a time, and tells a tracker when it is free.

It speaks TVM's RPC protocol: TVM's own client and tracker work with it. It needs Python's standard
library alone; each session is a process of its own, which loads TVM's runtime.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...targets import FabricError
from . import wire
from .address import check_key, place
from .errors import ConnectionLostError

TICK = 1.0
"""Seconds between looks at the session and the tracker."""
HANDSHAKE = 5.0
"""Seconds that a client has to show its key, and a tracker to answer."""
UNUSED = 6.0
"""Seconds after which a tracker's grant that nobody has used is withdrawn."""
GRACE = 1.0
"""Seconds that a session has to end before the next client is told that the device is busy."""
RETRY = 5.0
"""Seconds between attempts to reach a tracker."""


class Registration:
    """What a tracker knows of this device.

    Parameters
    ----------
    tracker : (str, int)
        Host and port.
    key : str
        What the device calls itself.
    port : int
        Where it listens. The tracker takes the host from the connection.
    tell : callable
    """

    def __init__(
        self, tracker: tuple[str, int], key: str, port: int, tell: Callable[[str], None]
    ) -> None:
        self._tracker, self._key, self._port, self._tell = tracker, key, port, tell
        self._sock: socket.socket | None = None
        self._next_try = 0.0
        self._granted: float | None = None
        self._complained = False
        self.match = ""

    def offer(self) -> None:
        """See to it that the tracker has this device in its list of free ones."""
        now = time.monotonic()
        if self._sock is None and now < self._next_try:
            return
        try:
            if self._sock is None:
                self._sock = self._connect()
            if not self.match:
                self._put()
            elif self.match in wire.ask_tracker(self._sock, [wire.Code.PENDING]):
                self._granted = None
            elif self._granted is None:
                self._granted = now
            elif now - self._granted > UNUSED:
                self._put()
        except (OSError, ValueError, ConnectionLostError) as error:
            self.close()
            self._next_try = now + RETRY
            if not self._complained:
                where = place(*self._tracker)
                self._tell(f"The tracker at {where} does not answer ({error}). Trying on.")
            self._complained = True

    def _connect(self) -> socket.socket:
        sock = wire.dial(*self._tracker, HANDSHAKE)
        try:
            if not wire.greet_tracker(sock):
                raise ConnectionLostError("what listens there is no tracker")
            info = {"key": f"server:{self._key}", "addr": [None, self._port]}
            self._expect(sock, [wire.Code.UPDATE_INFO, info])
        except BaseException:
            sock.close()
            raise
        if self._complained:
            self._tell(f"The tracker at {place(*self._tracker)} answers again.")
        self._complained = False
        return sock

    def _put(self) -> None:
        """Offer the device under a key that is good for one session."""
        assert self._sock is not None
        match = f"{self._key}:{random.SystemRandom().random()}"
        self._expect(self._sock, [wire.Code.PUT, self._key, [self._port, match], None])
        self.match, self._granted = match, None

    def _expect(self, sock: socket.socket, message: list[Any]) -> None:
        if wire.ask_tracker(sock, message) != wire.Code.SUCCESS:
            raise ConnectionLostError("it refused")

    def used(self) -> None:
        """Note that the key has been used; the next `offer` makes another."""
        self.match = ""

    def close(self) -> None:
        """Leave the tracker."""
        if self._sock is not None:
            self._sock.close()
        self._sock, self.match, self._granted = None, "", None


class Server:
    """Listens, checks keys, and starts a process for each session.

    Parameters
    ----------
    host, port : str, int
        Where to listen; port 0 takes one that is free.
    key : str
        What a client has to name. It is no password: it goes over the network as it is.
    name : str
        The device's name, for messages.
    folder : pathlib.Path
        Where bundles are kept.
    tracker : (str, int) or None
        Whom to tell when this device is free.
    tell : callable
        Is given a line for everything worth one.

    Attributes
    ----------
    port : int
        Where it listens.

    Raises
    ------
    FabricError
        If it can't listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        key: str,
        name: str,
        folder: Path,
        tracker: tuple[str, int] | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        if sys.platform == "win32":
            raise FabricError(
                "`fabric device serve` needs Android, Linux or macOS.",
                "Run it in WSL, or run bundles on Windows itself.",
            )
        self._key, self._name, self._folder, self._tell = check_key(key), name, folder, tell
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=8)
        except OSError as error:
            raise FabricError(
                f"{place(host, port)} can't be listened at: {error.strerror or error}.",
                "Choose another --port, or a --host that is this device's.",
            ) from error
        self.port = self._listener.getsockname()[1]
        self._registration = Registration(tracker, key, self.port, tell) if tracker else None
        self._session: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def run(self) -> None:
        """Serve until interrupted; ends the session that is on."""
        try:
            while True:
                self._reap()
                if self._registration is not None and self._session is None:
                    self._registration.offer()
                if select.select([self._listener], [], [], TICK)[0]:
                    self._reap()
                    self._admit()
        finally:
            self._listener.close()
            if self._registration is not None:
                self._registration.close()
            if self._session is not None:
                self._session.kill()
                self._session.wait()

    def _reap(self) -> None:
        """Notice that the session's process has ended."""
        if self._session is None or self._session.poll() is None:
            return
        seconds, status = time.monotonic() - self._began, self._session.returncode
        assert self._session.stdin is not None
        self._session.stdin.close()
        self._session = None
        how = "ended" if status == 0 else f"died with status {status}"
        self._tell(f"The session {how} after {seconds:.0f} s.")

    def _admit(self) -> None:
        """Shake hands with whoever has come, and begin a session."""
        sock, address = self._listener.accept()
        with contextlib.closing(sock):
            sock.settimeout(HANDSHAKE)
            try:
                if not self._shake_hands(sock):
                    return
            except OSError:
                return
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.keep_alive(sock)
            self._tell(f"A session with {place(*address[:2])} begins.")
            self._start(sock)

    def _shake_hands(self, sock: socket.socket) -> bool:
        """Return whether a client may have a session."""
        if wire.receive_word(sock) != wire.MAGIC:
            return False
        shown = wire.receive_text(sock).split()
        wanted = self._registration.match if self._registration is not None else self._key
        # An empty match means that the tracker has yet to be told of one.
        if not shown or shown[0] != f"client:{wanted}" or (self._registration and not wanted):
            wire.send_word(sock, wire.MISMATCH)
            self._tell("A client with another key was refused.")
            return False
        if self._is_busy():
            wire.send_word(sock, wire.BUSY)
            return False
        wire.send_greeting(sock, wire.MAGIC, f"server:{self._key}")
        return True

    def _is_busy(self) -> bool:
        """Return whether a session is on; one that a client has just left gets time to end."""
        if self._session is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._session.wait(GRACE)
        self._reap()
        return self._session is not None

    def _start(self, sock: socket.socket) -> None:
        """Give a connection to a process of its own; it ends when we do: see its standard input."""
        if self._registration is not None:
            self._registration.used()
        descriptor = sock.fileno()
        module = f"{__package__}.session"
        command = [sys.executable, "-m", module, str(descriptor), self._name, str(self._folder)]
        self._session = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[descriptor])
        self._began = time.monotonic()
