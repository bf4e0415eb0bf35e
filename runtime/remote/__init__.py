"""Devices that are elsewhere: a phone or another computer, reached over TVM's RPC.

`server` and what it starts run on the device and hold the real engines; `engines` stand for them
on this machine. Data, checkpoints and adapters stay here.
"""

from .address import Address, is_remote, parse_address
from .engines import RemoteInferenceEngine, RemoteTrainingEngine
from .errors import ConnectionLostError, DeviceStuckError, RemoteError

__all__ = [
    "Address",
    "ConnectionLostError",
    "DeviceStuckError",
    "RemoteError",
    "RemoteInferenceEngine",
    "RemoteTrainingEngine",
    "is_remote",
    "parse_address",
]
