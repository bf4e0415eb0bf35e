"""A named target: what to generate code for, and the limits that the code must respect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """One named target.

    Attributes
    ----------
    name : str
        What a person writes after ``--target``.
    family : str
        Which schedule rules serve it: ``"cpu"``.
    description : str
        One line for ``fabric targets``.
    options : dict
        The TVM target: kind and its attributes.
    device : str
        The TVM device type that runs it.
    vector_bytes : int
        Width of a vector register.
    features : frozenset of str
        Instruction sets that the rules may use: ``"avx512_vnni"``, ``"avx2"``, ``"fma"``,
        ``"neon_dot"``.
    """

    name: str
    family: str
    description: str
    options: dict[str, Any] = field(hash=False)
    device: str
    vector_bytes: int
    features: frozenset[str] = frozenset()
