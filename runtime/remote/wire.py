"""How TVM's RPC begins: sockets, the handshake over a key, and the tracker's messages.

The handshake is that of TVM 0.27: a magic number, the length of a key and the key, both ways; what
follows is the work of its C++ library. It is done in Python so that it has time limits.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from enum import IntEnum
from typing import Any

from .address import place
from .errors import ConnectionLostError, DeviceStuckError

MAGIC = 0xFF271
"""Opens a session; the answer where it is accepted."""
BUSY = MAGIC + 1
"""The answer of a device that serves someone else (TVM: the key is in use)."""
MISMATCH = MAGIC + 2
"""The answer where the key is another."""
TRACKER_MAGIC = 0x2F271
_WORD = struct.Struct("<i")
_LONGEST_KEY = 1 << 10
_LONGEST_MESSAGE = 1 << 20


class Code(IntEnum):
    """What is asked of a tracker; SUCCESS is what it answers."""

    SUCCESS = 0
    PUT = 3
    REQUEST = 4
    UPDATE_INFO = 5
    SUMMARY = 6
    PENDING = 7


def dial(host: str, port: int, seconds: float) -> socket.socket:
    """Return a connection whose every operation may take so many seconds.

    Raises
    ------
    ConnectionLostError, DeviceStuckError
        If nothing listens there, or there is no way there.
    """
    where = place(host, port)
    try:
        sock = socket.create_connection((host, port), seconds)
    except ConnectionRefusedError as error:
        raise ConnectionLostError(f"nothing listens at {where}") from error
    except TimeoutError as error:
        raise DeviceStuckError(f"{where} did not answer for {seconds:g} s") from error
    except OSError as error:
        raise ConnectionLostError(f"{where} can't be reached: {error.strerror or error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def receive(sock: socket.socket, count: int) -> bytes:
    """Return exactly so many bytes.

    Raises
    ------
    OSError
        If the other side closes before (ConnectionError) or is silent for too long (TimeoutError).
    """
    parts = bytearray()
    while len(parts) < count:
        part = sock.recv(count - len(parts))
        if not part:
            raise ConnectionResetError("the connection was closed")
        parts += part
    return bytes(parts)


def receive_word(sock: socket.socket) -> int:
    """Return a 32-bit number."""
    return _WORD.unpack(receive(sock, _WORD.size))[0]


def receive_text(sock: socket.socket, longest: int = _LONGEST_KEY) -> str:
    """Return a text that comes with its length in front.

    Raises
    ------
    OSError
        As `receive`, and if the length is none that a text could have.
    """
    size = receive_word(sock)
    if not 0 <= size <= longest:
        raise ConnectionAbortedError(f"a text of {size} bytes was announced")
    return receive(sock, size).decode("utf-8", "replace")


def send_greeting(sock: socket.socket, code: int, key: str) -> None:
    """Send a number and a key."""
    text = key.encode()
    sock.sendall(_WORD.pack(code) + _WORD.pack(len(text)) + text)


def send_word(sock: socket.socket, value: int) -> None:
    """Send a 32-bit number."""
    sock.sendall(_WORD.pack(value))


def ask_tracker(sock: socket.socket, message: list[Any]) -> Any:
    """Send a tracker a message and return its answer, both JSON.

    Raises
    ------
    OSError
        If the connection fails.
    ValueError
        If the answer is no JSON.
    """
    send_tracker(sock, message)
    return receive_tracker(sock)


def send_tracker(sock: socket.socket, message: list[Any]) -> None:
    """Send a tracker a message, JSON."""
    text = json.dumps(message).encode()
    sock.sendall(_WORD.pack(len(text)) + text)


def receive_tracker(sock: socket.socket) -> Any:
    """Return a tracker's answer, JSON."""
    return json.loads(receive_text(sock, _LONGEST_MESSAGE))


def greet_tracker(sock: socket.socket) -> bool:
    """Return whether a tracker is at the other end; where there is none, it closes."""
    send_word(sock, TRACKER_MAGIC)
    try:
        return receive_word(sock) == TRACKER_MAGIC
    except ConnectionError:
        return False


def keep_alive(sock: socket.socket) -> None:
    """Let the system notice, within a minute, that the other machine has gone without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def shut(sock: socket.socket) -> None:
    """End a connection, whatever state it is in; whoever waits on it is woken."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
