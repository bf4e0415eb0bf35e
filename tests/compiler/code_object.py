"""Reads AMD's code objects: what their notes say of each kernel.

As LLVM's "User Guide for AMDGPU Backend" describes: an ELF file whose note of type 32, of the owner
AMDGPU, is a MessagePack document; its list ``amdhsa.kernels`` has a map for each kernel.
"""

from __future__ import annotations

import struct
from typing import Any

METADATA = 32
MACHINE = 224
"""EM_AMDGPU."""


def kernels(code: bytes) -> dict[str, dict[str, Any]]:
    """Return what the notes say, by the kernel's name."""
    for owner, kind, content in _notes(code):
        if owner == b"AMDGPU" and kind == METADATA:
            return {each[".name"]: each for each in _Reader(content).value()["amdhsa.kernels"]}
    raise AssertionError("no metadata")


def abi_version(code: bytes) -> int:
    """Return the version of the code object: 3 in the header means 5."""
    assert code[:6] == b"\x7fELF\x02\x01"
    assert struct.unpack_from("<H", code, 18) == (MACHINE,)
    return code[8] + 2


def _notes(code: bytes) -> list[tuple[bytes, int, bytes]]:
    begin, size, count = *struct.unpack_from("<Q", code, 40), *struct.unpack_from("<HH", code, 58)
    found = []
    for at in range(begin, begin + size * count, size):
        kind, offset, length = (
            *struct.unpack_from("<I", code, at + 4),
            *struct.unpack_from("<QQ", code, at + 24),
        )
        end = offset + length
        while kind == 7 and offset < end:  # SHT_NOTE
            owner, content, note = struct.unpack_from("<III", code, offset)
            name = code[offset + 12 : offset + 12 + owner].rstrip(b"\0")
            offset += 12 + -(-owner // 4) * 4
            found.append((name, note, code[offset : offset + content]))
            offset += -(-content // 4) * 4
    return found


class _Reader:
    """Reads MessagePack, as much of it as the notes use."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def _number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def _text(self, size: int) -> str:
        self.at += size
        return self.content[self.at - size : self.at].decode()

    def _map(self, size: int) -> dict[Any, Any]:
        return {self.value(): self.value() for _ in range(size)}

    def value(self) -> Any:
        """Return the next value."""
        first = self._number("B")
        if first < 0x80:
            return first
        if first < 0x90:
            return self._map(first & 15)
        if first < 0xA0:
            return [self.value() for _ in range(first & 15)]
        if first < 0xC0:
            return self._text(first & 31)
        if first in (0xC2, 0xC3):
            return first == 0xC3
        if first in (0xCC, 0xCD, 0xCE, 0xCF):
            return self._number({0xCC: "B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}[first])
        if first in (0xD9, 0xDA):
            return self._text(self._number("B" if first == 0xD9 else ">H"))
        if first == 0xDC:
            return [self.value() for _ in range(self._number(">H"))]
        if first in (0xDE, 0xDF):
            return self._map(self._number(">H" if first == 0xDE else ">I"))
        raise AssertionError(f"a value of the form {first:#x}")
