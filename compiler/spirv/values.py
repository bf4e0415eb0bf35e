"""Types and values of a kernel, as TIR knows them.

A value of up to four lanes is one SPIR-V value; one of more lanes is several, its parts, since
SPIR-V's vectors end at four.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

WIDEST = 4
"""Lanes of SPIR-V's widest vector."""
_PATTERN = re.compile(r"(bfloat|float|uint|int|bool)(\d*)(?:x(\d+))?")


class DType(NamedTuple):
    """A scalar or vector type.

    Attributes
    ----------
    kind : str
        ``"int"``, ``"uint"``, ``"float"``, ``"bfloat"`` or ``"bool"``.
    bits : int
        Of a lane; 1 for ``"bool"``.
    lanes : int
        1 for a scalar.
    """

    kind: str
    bits: int
    lanes: int = 1

    @property
    def is_integer(self) -> bool:
        """Whether lanes are integers; a bool is none."""
        return self.kind in ("int", "uint")

    @property
    def is_float(self) -> bool:
        """Whether lanes are floats of any kind."""
        return self.kind in ("float", "bfloat")

    @property
    def scalar(self) -> DType:
        """The type of a lane."""
        return DType(self.kind, self.bits)

    def of(self, lanes: int) -> DType:
        """Return the same type with another number of lanes."""
        return DType(self.kind, self.bits, lanes)

    def __str__(self) -> str:
        scalar = self.kind if self.kind == "bool" else f"{self.kind}{self.bits}"
        return scalar if self.lanes == 1 else f"{scalar}x{self.lanes}"


BOOL = DType("bool", 1)
INT32 = DType("int", 32)
UINT32 = DType("uint", 32)
FLOAT32 = DType("float", 32)


class Value(NamedTuple):
    """A value that the kernel has computed.

    Attributes
    ----------
    dtype : DType
        Its type.
    parts : tuple of int
        The ids of its parts: one, or for more than four lanes several of equal size, in order.
    """

    dtype: DType
    parts: tuple[int, ...]

    @property
    def id(self) -> int:
        """The id of a value of one part."""
        (part,) = self.parts
        return part


@cache
def parse(text: str) -> DType | None:
    """Return the type that TVM writes as ``"float32x4"``; None where it is none of ours."""
    found = _PATTERN.fullmatch(text)
    if found is None:
        return None
    kind, bits, lanes = found.groups()
    return DType(kind, 1 if kind == "bool" else int(bits), int(lanes or 1))


@cache
def part_lanes(lanes: int) -> int:
    """Return the lanes of each part of a value: all of them up to four."""
    if lanes <= WIDEST:
        return lanes
    return next(width for width in (4, 3, 2, 1) if lanes % width == 0)
