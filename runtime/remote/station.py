"""One engine on a device, and what it takes to have it again after the connection was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..bundle import Bundle
from .address import Address
from .dialer import Dialer
from .errors import ConnectionLostError, RemoteError
from .exchange import Answer, Call, Patience, exchange
from .link import Link
from .sending import send_bundle

T = TypeVar("T")
Progress = Callable[[str, float], None]
ATTEMPTS = 4
"""How often a device may break the connection at the same call before it is given up."""


class Station:
    """An engine on a device.

    A session's end is the end of its engine. So the station knows every call that the engine's
    state depends on, and makes them again where the engine has to be opened anew, be it on the same
    device or on the next: they are deterministic, and nothing is lost.

    Parameters
    ----------
    bundle : Bundle
        What the device computes with; open on this machine.
    address : Address
    opening : Call
        Opens the engine.
    tell : callable
        Is given a sentence where something goes wrong and is mended.
    progress : callable or None
        Is given what is being done first of all, and how much of it (0 to 1) is.
    patience : Patience or None

    Attributes
    ----------
    journal : list of Call
        The calls to make again after the opening one; its owner writes it.
    opened : Answer
        The opening call's answer.

    Raises
    ------
    RemoteError
        If there is no such device, or it refuses.
    """

    def __init__(
        self,
        bundle: Bundle,
        address: Address,
        opening: Call,
        tell: Callable[[str], None],
        progress: Progress | None = None,
        patience: Patience | None = None,
    ) -> None:
        patience = patience or Patience()
        self._compute = address.timeout or patience.compute
        self._bundle, self._opening, self._tell = bundle, opening, tell
        self._dialer = Dialer(address, tell, patience)
        self._progress = progress
        self._link: Link | None = None
        self._met = self._ready = self._lost = False
        self.journal: list[Call] = []
        self.opened = Answer({}, {})
        try:
            self._insist(lambda link: None)
        except BaseException:
            self.close()
            raise

    def call(self, call: Call) -> Answer:
        """Let the engine do something; done once, however often the connection is lost meanwhile.

        Raises
        ------
        RemoteError
            If the engine refuses, or no device is left that would answer.
        """
        return self._insist(lambda link: exchange(link, call, self._compute))

    def close(self) -> None:
        """End the session; the device is then free for others."""
        if self._link is not None:
            self._link.close()
        self._link, self._ready = None, False

    def _insist(self, work: Callable[[Link], T]) -> T:
        """Do something with a connection, on a new one where it is lost."""
        losses = 0
        while True:
            try:
                return work(self._connected())
            except ConnectionLostError as error:
                link = self._link
                assert link is not None
                self.close()
                self._lost = True
                losses += not self._dialer.lost(link, error)
                if losses == ATTEMPTS:
                    raise RemoteError(
                        f"{link.name} has failed {losses} times at the same work: {error.reason}.",
                        "Its own terminal may tell why, and so may `fabric doctor` there; a "
                        "training goes on from its checkpoint with --resume.",
                    ) from error
            except RemoteError:
                raise
            except BaseException:
                # Ctrl-C: the device may be in the middle of it, and is to begin anew.
                self.close()
                raise

    def _connected(self) -> Link:
        """Return a connection to the engine, as it was."""
        if self._link is None:
            self._link = self._dialer.connect(again=self._met)
            self._met, self._ready = True, False
        if not self._ready:
            address, again = self._dialer.address, bool(self.opened.values)
            send_bundle(self._link, self._bundle, address.bundle, self._compute, self._progress)
            self.opened = exchange(self._link, self._opening, self._compute)
            for call in self.journal:
                exchange(self._link, call, self._compute)
            if again and self._lost:
                self._tell(f"Going on with {self._link.name}.")
                self._lost = False
            # A bar that shows a training must not meet one that shows a bundle being sent.
            self._ready, self._progress = True, None
        return self._link
