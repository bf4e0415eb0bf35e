"""Kernels measured on a device elsewhere, by `kernel_bench.KernelBench` there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from ..kernel_bench import Argument
from .address import Address
from .dialer import Dialer
from .errors import ConnectionLostError, DeviceStuckError, RemoteError
from .exchange import Call, Patience, exchange
from .link import Link
from .tracker import Tracker

Tell = Callable[[str], None]
LOSSES = 2
"""How often a candidate may end the connection before it is to blame."""
ATTEMPTS = 4
"""The same of a default schedule, which is not to blame."""


def describe(address: Address, kind: str, tell: Tell) -> dict[str, Any]:
    """Return what a device says of itself.

    Returns
    -------
    dict
        For the kind ``"cpu"``: ``target``, the best for its processor, and the processor's
        ``name``, ``detail`` and ``threads``; for others ``devices``, see `targets.device_api`.

    Raises
    ------
    RemoteError
        If no device answers, or it has none of the kind.
    """
    patience = Patience()
    try:
        with closing(Dialer(address, tell, patience).connect()) as link:
            call = Call("device.describe", {"kind": kind})
            return exchange(link, call, patience.compute).values
    except ConnectionLostError as error:
        raise RemoteError(f"{error.reason}.", "Try again.") from error


def devices(address: Address) -> int:
    """Return how many devices there are at an address: a tracker's of its key, or one."""
    try:
        with Tracker(address.host, address.port, Patience().connect) as tracker:
            found = tracker.devices() if tracker.found else {}
    except ConnectionLostError:
        return 1
    return max(len(found.get(address.key, [])), 1)


class RemoteKernelBench:
    """A `KernelBench` on a device, which a candidate may crash or hang.

    A session's end ends whatever its kernel does, so the device is at hand again after either. A
    device that gives no sign of life is another matter: a tracker's is skipped, with its name.

    Parameters
    ----------
    kind : str
        The kind of device.
    address : Address
        Of a device, or of a tracker, from which any of its free devices is taken.
    tell : callable
        Is given a sentence where a device was lost.
    patience : Patience or None
    """

    def __init__(
        self, kind: str, address: Address, tell: Tell, patience: Patience | None = None
    ) -> None:
        self._kind, self._met = kind, False
        self._dialer = Dialer(address, tell, patience or Patience())
        self._link: Link | None = None
        self._taken: Call | None = None

    def take(
        self, library: np.ndarray, arguments: Sequence[Argument], limit: float
    ) -> dict[str, Any]:
        """Go on with another kernel: its default schedule, a library as uint8 [n].

        Parameters
        ----------
        library : numpy.ndarray
        arguments : sequence of mapping
        limit : float
            Seconds that it may take.

        Raises
        ------
        RemoteError
            If no device is left that would run it.
        """
        values = {"kind": self._kind, "arguments": list(arguments)}
        self._taken = Call("kernel.take", values, {"library": library})
        if self._link is not None:
            try:
                return exchange(self._link, self._taken, limit).values
            except ConnectionLostError as error:
                self._lost(self._link, error)
        return self._prepared(limit)[1]

    def compare(
        self, library: np.ndarray, seconds: float, repeats: int, limit: float
    ) -> dict[str, Any]:
        """Return what `KernelBench.compare` gives; a candidate's crash or hang is its failure.

        Raises
        ------
        RemoteError
            If no device is left that would run it.
        """
        values = {"seconds": seconds, "repeats": repeats}
        call, losses = Call("kernel.compare", values, {"library": library}), 0
        while True:
            link = self._link or self._prepared(limit)[0]
            began = time.monotonic()
            try:
                return exchange(link, call, limit).values
            except ConnectionLostError as error:
                if isinstance(error, DeviceStuckError) and time.monotonic() - began >= limit:
                    self.close()
                    return {"failed": "hang", "why": f"no answer within {limit:.0f} s"}
                losses += not self._lost(link, error)
                if losses == LOSSES:
                    return {"failed": "crash", "why": error.reason}

    def _prepared(self, limit: float) -> tuple[Link, dict[str, Any]]:
        """Connect, and have the device take the kernel at hand; return what it says."""
        assert self._taken is not None
        losses = 0
        while True:
            link = self._dialer.connect(again=self._met)
            self._link, self._met = link, True
            try:
                return link, exchange(link, self._taken, limit).values
            except ConnectionLostError as error:
                losses += not self._lost(link, error)
                if losses == ATTEMPTS:
                    raise RemoteError(
                        f"{link.name} has failed {losses} times at a default schedule: "
                        f"{error.reason}.",
                        "Its own terminal may tell why, and so may `fabric doctor` there.",
                    ) from error

    def _lost(self, link: Link, error: ConnectionLostError) -> bool:
        """Give a connection up; return whether its device is out of the game."""
        self.close()
        return self._dialer.lost(link, error)

    def close(self) -> None:
        """End the session; the device is then free for others."""
        if self._link is not None:
            self._link.close()
        self._link = None
