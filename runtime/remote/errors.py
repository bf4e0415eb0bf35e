"""What goes wrong with a device that is elsewhere: for good, or so that trying again may help."""

from __future__ import annotations

from ...targets import FabricError


class RemoteError(FabricError):
    """A device can't be used as asked, and trying again would not help."""


class ConnectionLostError(Exception):
    """There is no connection, or there is none any more; another attempt may succeed.

    Parameters
    ----------
    reason : str
        A clause that names the device: "phone at 10.0.0.2:9190 closed the connection".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DeviceBusyError(ConnectionLostError):
    """A device, or every device of a tracker, serves someone else."""


class DeviceStuckError(ConnectionLostError):
    """A device is connected and does not answer: it hangs, or its network has gone."""
