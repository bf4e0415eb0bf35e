"""Calls to a device's service: a message there, a message back, in pieces, for as long as it takes.

The device answers at once or, while it still computes, once a second with nothing; so a device that
is gone or frozen is told from one that is slow.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import DeviceStuckError, RemoteError
from .link import Link
from .message import PIECE, pack, unpack

PROTOCOL = 1
"""Version of the service's calls; this machine's and the device's must be the same."""
FUNCTIONS = "bitfabric.remote."
"""What the names of the service's global functions begin with: hello, put, call, wait, more."""
TOTAL = struct.Struct("<Q")
"""In front of an answer's first piece: the length of the whole."""


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds.

    Attributes
    ----------
    connect : float
        For a connection and the handshake.
    answer : float
        For a sign of life while connected; more than the second between two of them.
    compute : float
        For one call to come to its end.
    retry : float
        For a lost device to come back, or a tracker's device to get free.
    pause : float
        Between attempts.
    """

    connect: float = 10.0
    answer: float = 30.0
    compute: float = 600.0
    retry: float = 60.0
    pause: float = 1.0


@dataclass(frozen=True)
class Call:
    """One call of the service: what is to be done, with values and arrays."""

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a call gave."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


def exchange(link: Link, call: Call, compute: float) -> Answer:
    """Let a device do something.

    Parameters
    ----------
    link : Link
    call : Call
    compute : float
        Seconds that it may take.

    Raises
    ------
    ConnectionLostError, DeviceStuckError
        If the device does not answer, or not come to an end.
    RemoteError
        If it can't be done: the device's own cause and remedy.
    """
    message = pack({"call": call.name, **call.values}, call.arrays)
    last = (len(message) - 1) // PIECE * PIECE
    for begin in range(0, last, PIECE):
        link.call(FUNCTIONS + "put", message[begin : begin + PIECE])
    began = time.monotonic()
    reply = bytes(link.call(FUNCTIONS + "call", message[last:]))
    while not reply:
        if time.monotonic() - began > compute:
            link.close()
            raise DeviceStuckError(f"{link.name} came to no end within {compute:g} s")
        reply = bytes(link.call(FUNCTIONS + "wait"))
    (total,) = TOTAL.unpack_from(reply)
    body = bytearray(reply[TOTAL.size :])
    while len(body) < total:
        body += bytes(link.call(FUNCTIONS + "more", len(body)))
    values, arrays = unpack(bytes(body))
    if "error" in values:
        cause, remedy = values["error"]
        raise RemoteError(f"{link.name}: {cause}", remedy)
    return Answer(values, arrays)
