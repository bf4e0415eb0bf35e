"""Pieces of device modules as runtimes read them: little endian, a 64-bit length before each."""

from __future__ import annotations

import struct
from collections.abc import Iterable


def blob(content: bytes) -> bytes:
    """Return bytes after their number."""
    return struct.pack("<Q", len(content)) + content


def text(content: str) -> bytes:
    """Return a text in UTF-8 after the number of its bytes."""
    return blob(content.encode())


def items(packed: Iterable[bytes]) -> bytes:
    """Return packed pieces after their number."""
    listed = list(packed)
    return struct.pack("<Q", len(listed)) + b"".join(listed)
