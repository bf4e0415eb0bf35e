"""Libraries of Apple's systems: the system that one says it is for, and its signature.

An iPhone's library differs from a Mac's in the platform that it names. The linker makes the Mac's;
here it is named anew, and the ad-hoc signature, which holds a SHA-256 of every page, is brought up
to date. Formats: Apple's ``mach-o/loader.h`` and ``Security/CSCommon.h`` (cs_blobs.h of XNU).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

MACOS, IOS = 1, 2
"""Numbers of platforms."""
BUILD_VERSION, CODE_SIGNATURE = 0x32, 0x1D
"""Load commands: the platform and its oldest version; where the signature lies."""
_HEADER_BYTES = 32
_DIRECTORY = 0xFADE0C02
"""The magic number of a signature's list of hashes."""


def commands(library: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield each load command's number and its place in a 64-bit library."""
    (count,) = struct.unpack_from("<I", library, 16)
    place = _HEADER_BYTES
    for _ in range(count):
        command, size = struct.unpack_from("<2I", library, place)
        yield command, place
        place += size


def make_ios(path: Path, least: str) -> None:
    """Turn a library for macOS into one for iOS.

    Parameters
    ----------
    path : pathlib.Path
        The library, which is changed.
    least : str
        The oldest version of iOS that it is for, such as ``16.0``.
    """
    library = bytearray(path.read_bytes())
    major, minor = map(int, least.split("."))
    (place,) = (at for command, at in commands(library) if command == BUILD_VERSION)
    struct.pack_into("<2I", library, place + 8, IOS, major << 16 | minor << 8)
    for slot, digest in page_hashes(library):
        library[slot : slot + len(digest)] = digest
    path.write_bytes(library)


def page_hashes(library: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    """Yield the place of each page's hash in a library's signature, and what it has to be.

    Nothing where the library has no signature.
    """
    for command, at in commands(library):
        if command != CODE_SIGNATURE:
            continue
        (begin,) = struct.unpack_from("<I", library, at + 8)
        (blobs,) = struct.unpack_from(">I", library, begin + 8)
        for i in range(blobs):
            (offset,) = struct.unpack_from(">I", library, begin + 12 + 8 * i + 4)
            if struct.unpack_from(">I", library, begin + offset)[0] == _DIRECTORY:
                yield from _directory_hashes(library, begin + offset)


def _directory_hashes(library: bytes | bytearray, begin: int) -> Iterator[tuple[int, bytes]]:
    """Yield as :func:`page_hashes` does, for one list of SHA-256 hashes."""
    hashes, _, _, pages, end = struct.unpack_from(">5I", library, begin + 16)
    size, _, _, page_bits = struct.unpack_from("4B", library, begin + 36)
    for page in range(pages):
        content = library[page << page_bits : min((page + 1) << page_bits, end)]
        yield begin + hashes + page * size, hashlib.sha256(content).digest()[:size]
