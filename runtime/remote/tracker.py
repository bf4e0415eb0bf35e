"""The client's side of a TVM tracker, which knows the devices of a key and which are free."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from . import wire
from .address import place
from .errors import ConnectionLostError, DeviceStuckError

AT_ONCE = 2.0
"""Seconds within which a tracker answers if a device is free."""


class Tracker:
    """A connection to a tracker; a context manager.

    Parameters
    ----------
    host, port : str, int
    seconds : float
        How long connecting and answering may take.

    Raises
    ------
    ConnectionLostError, DeviceStuckError
        If nothing answers there.
    """

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self.where = place(host, port)
        self._seconds = seconds
        self._sock = wire.dial(host, port, seconds)
        try:
            self.found = wire.greet_tracker(self._sock)
        except TimeoutError as error:
            self._sock.close()
            raise DeviceStuckError(
                f"{self.where} accepts connections and did not answer for {seconds:g} s"
            ) from error
        except OSError:
            self.found = False
        if not self.found:
            self._sock.close()

    def __enter__(self) -> Tracker:
        """Return the tracker itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the connection; a request that waits is forgotten."""
        self._sock.close()

    def _receive(self) -> Any:
        """Return what an answer holds besides its success."""
        try:
            answer = wire.receive_tracker(self._sock)
        except TimeoutError as error:
            raise DeviceStuckError(
                f"the tracker at {self.where} did not answer for {self._seconds:g} s"
            ) from error
        except (OSError, ValueError) as error:
            raise self._gone() from error
        if not isinstance(answer, list) or not answer or answer[0] != wire.Code.SUCCESS:
            raise ConnectionLostError(f"the tracker at {self.where} refused")
        return answer[1]

    def _send(self, message: list[Any]) -> None:
        try:
            wire.send_tracker(self._sock, message)
        except OSError as error:
            raise self._gone() from error

    def _gone(self) -> ConnectionLostError:
        return ConnectionLostError(f"the tracker at {self.where} closed the connection")

    def devices(self) -> dict[str, list[str]]:
        """Return the places ("host:port") of all devices, free or busy, by their keys."""
        self._send([wire.Code.SUMMARY])
        found: dict[str, list[str]] = {}
        for entry in self._receive()["server_info"]:
            key = str(entry["key"]).partition(":")[2]
            found.setdefault(key, []).append(place(*entry["addr"]))
        return found

    def request(
        self, key: str, seconds: float, waiting: Callable[[], None]
    ) -> tuple[str, int, str] | None:
        """Return host, port and the session's key of a free device; None where none gets free.

        Afterwards, where it was None, the connection is of no more use.

        Parameters
        ----------
        key : str
        seconds : float
            How long to wait for one.
        waiting : callable
            Called where none is free at once.
        """
        self._send([wire.Code.REQUEST, key, "", 1])
        if not self._ready(min(seconds, AT_ONCE)):
            waiting()
            if not self._ready(seconds - AT_ONCE):
                return None
        host, port, match = self._receive()
        return str(host), int(port), str(match)

    def _ready(self, seconds: float) -> bool:
        """Return whether an answer comes within some seconds."""
        return bool(select.select([self._sock], [], [], max(seconds, 0.0))[0])
