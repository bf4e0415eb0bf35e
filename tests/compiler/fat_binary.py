"""Reads NVIDIA's container of machine code: which architectures it has code for.

As fatbinary_section.h and the readers of it describe: a header of a u32 magic, u16 version, u16
bytes of the header and u64 bytes that follow; then parts, each a header that begins with u16 kind,
u16 version, u32 bytes of the header, u64 bytes of the content, and has the architecture at byte 28.
"""

from __future__ import annotations

import struct

MAGIC = 0xBA55ED50
PTX, ELF = 1, 2


def parts(content: bytes) -> list[tuple[int, int]]:
    """Return the kind and architecture of each part, such as ``(ELF, 80)``."""
    magic, _version, header, size = struct.unpack_from("<IHHQ", content)
    assert magic == MAGIC
    at, end, found = header, header + size, []
    while at < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", content, at)
        found.append((kind, struct.unpack_from("<I", content, at + 28)[0]))
        at += header + size
    return found


def within(module: bytes) -> bytes:
    """Return the one container in a file."""
    mark = struct.pack("<I", MAGIC)
    assert module.count(mark) == 1
    begin = module.index(mark)
    _, _, header, size = struct.unpack_from("<IHHQ", module, begin)
    return module[begin : begin + header + size]
