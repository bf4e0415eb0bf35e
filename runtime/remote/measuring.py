"""Rounds of work that a device elsewhere measures by its own clock, the network left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..bundle import Bundle
from ..measure import Work
from .address import Address
from .exchange import Call, Patience
from .station import Station


class RemoteMeasurement:
    """A `measure.Measurement` on a device.

    Parameters
    ----------
    bundle : Bundle
        Open on this machine, for whatever target.
    address : Address
    work : Work
    tell : callable
        Is given a sentence where a device was lost and what is done about it.
    patience : Patience or None

    Raises
    ------
    RemoteError
        If no device answers, or it can't run the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        address: Address,
        work: Work,
        tell: Callable[[str], None],
        patience: Patience | None = None,
    ) -> None:
        opening = Call("measure.open", asdict(work))
        self._station = Station(bundle, address, opening, tell, patience=patience)

    def round(self) -> dict[str, Any]:
        """Measure for a while, and leave the device to whoever comes next."""
        try:
            return dict(self._station.call(Call("measure.round")).values["result"])
        finally:
            # A device serves one session at a time, and the other side of a comparison waits.
            self._station.close()
