"""Code objects of several architectures in one: the offload bundle of Clang and HIP.

Little endian (LLVM, "Clang Offload Bundler"): the magic, a u64 count, for each entry u64 offset,
size and length of its name and the name, then the entries' contents. Beside the code objects is an
empty entry for the host, as HIP's own compiler writes it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

MAGIC = b"__CLANG_OFFLOAD_BUNDLE__"
PREFIX = "hipv4-amdgcn-amd-amdhsa--"
HOST = "host-x86_64-unknown-linux-gnu-"
ALIGNMENT = 4096
"""Bytes at whose multiples a code object begins, for a loader may map it as it is."""


def pack_code(objects: Mapping[str, bytes]) -> bytes:
    """Return the bundle of code objects by architecture."""
    entries = [(HOST, b""), *((PREFIX + name, code) for name, code in objects.items())]
    head = len(MAGIC) + 8 + sum(24 + len(name) for name, _ in entries)
    table, body, at = [], b"", head
    for name, code in entries:
        gap = -at % ALIGNMENT if code else 0
        at += gap
        table.append(struct.pack("<QQQ", at, len(code), len(name)) + name.encode())
        body += bytes(gap) + code
        at += len(code)
    return MAGIC + struct.pack("<Q", len(entries)) + b"".join(table) + body


def unpack_code(bundle: bytes) -> dict[str, bytes]:
    """Return the code objects of a bundle by architecture."""
    (count,) = struct.unpack_from("<Q", bundle, len(MAGIC))
    at, found = len(MAGIC) + 8, {}
    for _ in range(count):
        offset, size, length = struct.unpack_from("<QQQ", bundle, at)
        name = bundle[at + 24 : at + 24 + length].decode()
        at += 24 + length
        if name.startswith(PREFIX):
            found[name.removeprefix(PREFIX)] = bundle[offset : offset + size]
    return found
