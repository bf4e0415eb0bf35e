"""Finding a device that answers: the one at an address, or any of a tracker's of one key."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from . import wire
from .address import Address, place
from .errors import ConnectionLostError, DeviceBusyError, DeviceStuckError, RemoteError
from .exchange import FUNCTIONS, PROTOCOL, Patience
from .link import Link
from .tracker import Tracker

_START = "Start `fabric device serve` there, and check the address, the tunnel and the network"
_WAIT = "Wait for it, or end the other session: `fabric device serve` may be restarted"
_RESUME = "a training goes on from its checkpoint with --resume"


class WrongKeyError(RemoteError):
    """A device has another key."""


class Dialer:
    """Connects to a device, again and again if need be.

    Parameters
    ----------
    address : Address
        rpc://host:port/key may be a tracker's or a device's own: whoever answers says which.
    tell : callable
        Is given a sentence where something went wrong that is being mended.
    patience : Patience

    Attributes
    ----------
    skipped : dict of str to str
        The places of a tracker's devices that hang, and how: they are not tried again.
    """

    def __init__(self, address: Address, tell: Callable[[str], None], patience: Patience) -> None:
        self.address, self.patience = address, patience
        self.skipped: dict[str, str] = {}
        self._tell = tell
        self._is_tracker: bool | None = None if address.key else False

    def connect(self, again: bool = False) -> Link:
        """Return a connection to a device.

        Parameters
        ----------
        again : bool
            Whether there was one before: it is then waited for, in case it comes back.

        Raises
        ------
        RemoteError
            If there is none, or it refuses.
        """
        began, waited = time.monotonic(), False
        while True:
            try:
                return self._attempt(again)
            except ConnectionLostError as error:
                busy = isinstance(error, DeviceBusyError)
                limit = self.patience.retry if again or busy else 0.0
                if time.monotonic() - began >= limit:
                    remedy = _WAIT if busy else _START
                    remedy += f"; {_RESUME}." if again else "."
                    raise RemoteError(sentence(error.reason), remedy) from error
                if busy and not waited:
                    self._tell(f"{sentence(error.reason)} Waiting for it.")
                    waited = True
            time.sleep(self.patience.pause)

    def lost(self, link: Link, error: ConnectionLostError) -> bool:
        """Tell of a connection that has failed; return whether its device is now out of the game.

        A tracker's device that hangs is: the next will be taken.
        """
        if self._is_tracker and isinstance(error, DeviceStuckError):
            self._skip(link.where, error.reason)
            return True
        self._tell(f"{sentence(error.reason)} Trying again.")
        return False

    def _skip(self, where: str, reason: str) -> None:
        self.skipped[where] = reason
        self._tell(f"{sentence(reason)} It is skipped.")

    def _attempt(self, again: bool) -> Link:
        host, port, key = self.address.host, self.address.port, self.address.key
        if self._is_tracker is not False:
            with Tracker(host, port, self.patience.connect) as tracker:
                if tracker.found:
                    self._is_tracker = True
                    return self._from_tracker(tracker, again)
            if self._is_tracker:
                raise ConnectionLostError(f"the tracker at {place(host, port)} has gone")
        link = greet(host, port, key, self.patience)
        self._is_tracker = False
        return link

    def _from_tracker(self, tracker: Tracker, again: bool) -> Link:
        """Take the tracker's free devices in turn until one answers."""
        key = self.address.key
        devices = self._known(tracker, again)
        for _ in range(2 * len(devices) + 2):
            granted = tracker.request(key, self.patience.retry, self._wait)
            if granted is None:
                raise DeviceBusyError(
                    f"none of the {len(devices)} devices with the key {key!r} became free within "
                    f"{self.patience.retry:g} s"
                )
            host, port, match = granted
            if place(host, port) in self.skipped:
                continue
            try:
                return greet(host, port, match, self.patience)
            except DeviceStuckError as error:
                self._skip(place(host, port), error.reason)
            except (ConnectionLostError, WrongKeyError) as error:
                reason = error.reason if isinstance(error, ConnectionLostError) else error.cause
                self._tell(f"{sentence(reason)} Trying the next device.")
            self._known(tracker, again)
        raise ConnectionLostError(f"no device of the tracker at {tracker.where} answers")

    def _wait(self) -> None:
        self._tell(f"No device with the key {self.address.key!r} is free. Waiting for one.")

    def _known(self, tracker: Tracker, again: bool) -> list[str]:
        """Return the places of the devices with our key, some of which are not skipped."""
        found, key = tracker.devices(), self.address.key
        devices = found.get(key, [])
        if devices and all(where in self.skipped for where in devices):
            reasons = "; ".join(self.skipped[where] for where in devices)
            raise RemoteError(
                f"No device with the key {key!r} is left: {reasons}.",
                f"Restart `fabric device serve` on them; {_RESUME}.",
            )
        if devices:
            return devices
        if again:
            raise ConnectionLostError(
                f"the tracker at {tracker.where} has no device with the key {key!r} any more"
            )
        others = ", ".join(sorted(found)) or "none"
        raise RemoteError(
            f"The tracker at {tracker.where} has no device with the key {key!r}; it has: {others}.",
            f"Start one: fabric device serve --tracker {tracker.where} --key {key}",
        )


def greet(host: str, port: int, key: str, patience: Patience) -> Link:
    """Open a session with the device at a place.

    Raises
    ------
    ConnectionLostError, DeviceStuckError
        If it does not answer or is busy.
    RemoteError
        If it refuses, or is no device of ours or of this version.
    """
    where = place(host, port)
    sock = wire.dial(host, port, patience.connect)
    try:
        _shake_hands(sock, where, key)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise DeviceStuckError(
                f"{where} accepts connections and did not answer for {patience.connect:g} s"
            ) from error
        if isinstance(error, OSError):
            raise ConnectionLostError(f"{where} closed the connection at once") from error
        raise
    link = Link(sock, where, patience.answer)
    try:
        _introduce(link)
    except BaseException:
        link.close()
        raise
    return link


def _shake_hands(sock: socket.socket, where: str, key: str) -> None:
    """Show our key."""
    wire.send_greeting(sock, wire.MAGIC, f"client:{key}")
    code = wire.receive_word(sock)
    if code == wire.MISMATCH:
        raise WrongKeyError(
            f"The device at {where} has another key than {key!r}.",
            "Name the key it was started with, `fabric device serve --key KEY`: rpc://HOST:PORT/KEY"
            ". A device of a tracker is asked for there: rpc://TRACKER:PORT/KEY.",
        )
    if code == wire.BUSY:
        raise DeviceBusyError(f"the device at {where} is busy with another session")
    if code != wire.MAGIC:
        raise RemoteError(
            f"What listens at {where} is no TVM RPC server.",
            "Check the port; `fabric device serve` prints it.",
        )
    wire.receive_text(sock)


def _introduce(link: Link) -> None:
    """Learn the device's name; refuse one with which we can't talk."""
    try:
        theirs = json.loads(link.call(FUNCTIONS + "hello"))
    except AttributeError as error:
        raise RemoteError(
            f"The TVM RPC server at {link.where} is not bitfabric's.",
            "Start `fabric device serve` there instead.",
        ) from error
    link.name = f"{theirs['name']} at {link.where}"
    if theirs["protocol"] != PROTOCOL:
        raise RemoteError(
            f"{link.name} runs bitfabric {theirs['bitfabric']}, which does not understand this "
            f"machine's {own_version()}.",
            "Install the same version of bitfabric here and on the device.",
        )


def own_version() -> str:
    """Return the installed version of bitfabric."""
    try:
        return version("bitfabric")
    except PackageNotFoundError:
        return "unknown"


def sentence(clause: str) -> str:
    """Return a clause as a sentence."""
    return f"{clause[:1].upper()}{clause[1:]}."
