"""Where a device is, as `--device` names it: rpc://host:port, rpc://tracker:port/key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from .errors import RemoteError

SCHEME = "rpc://"
PORT = 9190
"""Where a device, or a tracker, listens unless it is told otherwise."""
_FORM = "Write rpc://HOST:PORT, rpc://HOST:PORT/KEY or rpc://TRACKER:PORT/KEY."


@dataclass(frozen=True)
class Address:
    """A device, or a tracker's devices.

    Attributes
    ----------
    host : str
    port : int
        Of the device itself, or of a tracker.
    key : str
        What a device calls itself; all devices of a tracker that share one are alike. "" for a
        device that was started without one.
    bundle : str or None
        A bundle's folder on the device, which is then used instead of sending it there.
    timeout : float or None
        Seconds that one call may compute before the device counts as stuck; None for the default.
    """

    host: str
    port: int
    key: str = ""
    bundle: str | None = None
    timeout: float | None = None


def is_remote(device: str | None) -> bool:
    """Return whether a `--device` names one that is elsewhere."""
    return device is not None and device.startswith(SCHEME)


def check_key(key: str) -> str:
    """Return a device's key.

    Raises
    ------
    RemoteError
        If it has a character that the protocol or an address gives another meaning.
    """
    if re.fullmatch(r"[\w.+-]*", key):
        return key
    raise RemoteError(
        f"{key!r} can't be a device's key.", "Use letters, digits and the characters . _ + - only."
    )


def parse_address(text: str) -> Address:
    """Read ``rpc://host:port/key?bundle=PATH&timeout=SECONDS``.

    Only the host is needed; the port is 9190 unless given.

    Raises
    ------
    RemoteError
        If it is not of that form.
    """
    problem = RemoteError(f"{text} does not name a device.", _FORM)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port if parts.port is not None else PORT
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
        timeout = float(query.pop("timeout")[0]) if "timeout" in query else None
        bundle = query.pop("bundle")[0] if "bundle" in query else None
    except ValueError as error:
        raise problem from error
    unknown = query or parts.fragment or parts.username
    if not is_remote(text) or not host or unknown or (timeout is not None and not timeout > 0):
        raise problem
    return Address(host, port, check_key(parts.path.strip("/")), bundle, timeout)


def place(host: str, port: int) -> str:
    """Return ``host:port`` as people write it, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_place(text: str) -> tuple[str, int]:
    """Read ``host:port``.

    Raises
    ------
    RemoteError
        If it is not of that form.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        raise RemoteError(f"{text!r} is not of the form HOST:PORT.", "Write 127.0.0.1:9190.")
    return host, port
