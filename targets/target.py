"""A named target: what to generate code for, and the limits that the code must respect."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import FabricError

KIB, MIB = 1 << 10, 1 << 20
TRIPLE = re.compile(r"[a-z0-9_]+(-[a-z0-9_.]+){1,3}")


@dataclass(frozen=True)
class Limits:
    """What a graphics processor's kernels may use at most.

    Attributes
    ----------
    max_buffer : int
        Bytes of the largest buffer that a kernel may address; larger ones are split into windows.
    max_threads : int
        Threads of a work-group.
    shared_bytes : int
        Memory that a work-group shares.
    subgroup : int
        Threads that execute together; 0 where it is not known.
    alignment : int
        Bytes; a part of a buffer may begin at multiples of it.
    """

    max_buffer: int
    max_threads: int
    shared_bytes: int
    subgroup: int = 0
    alignment: int = 512


@dataclass(frozen=True)
class MatrixUnit:
    """A product of small matrices that the threads of a subgroup compute together.

    Attributes
    ----------
    rows, columns, depth : int
        Of the result, and the terms of a sum: ``m``, ``n`` and ``k``.
    factors, result : str
        Dtypes: ``"float16"`` into ``"float32"``, ``"int8"`` into ``"int32"``.
    """

    rows: int
    columns: int
    depth: int
    factors: str
    result: str


@dataclass(frozen=True)
class Target:
    """One named target.

    Attributes
    ----------
    name : str
        What a person writes after ``--target``.
    family : str
        Which schedule rules serve it: ``"cpu"`` or ``"gpu"``.
    description : str
        One line for ``fabric targets``.
    options : dict
        The TVM target: kind and its attributes.
    device : str
        The TVM device type that runs it: ``"cpu"``, ``"opencl"``.
    vector_bytes : int
        Width of a vector register, or of a thread's widest load.
    features : frozenset of str
        What the rules may use. Of processors ``"avx512_vnni"``, ``"avx2"``, ``"fma"``,
        ``"neon_dot"``; of graphics processors ``"fp16"``, ``"shared_memory"`` (it is faster than
        global memory), ``"int8_dot"`` (four 8-bit products are one instruction) and ``"subgroup"``
        (threads that run together combine their values: ``fabric_subgroup_add`` and the like),
        ``"fragments"`` (it is known which thread has what of a matrix unit's factors and sums).
        Vulkan's have more, see `vulkan.py`.
    limits : Limits, optional
        Of a graphics processor.
    host : str, optional
        Target triple of the processor beside a graphics processor; this machine's where None.
    matrices : tuple of MatrixUnit
        The products that the device has units for; at most one of each dtype.
    """

    name: str
    family: str
    description: str
    options: dict[str, Any] = field(hash=False)
    device: str
    vector_bytes: int
    features: frozenset[str] = frozenset()
    limits: Limits | None = None
    host: str | None = None
    matrices: tuple[MatrixUnit, ...] = ()

    def with_host(self, triple: str) -> Target:
        """Return this target beside another processor than the one it comes with.

        Parameters
        ----------
        triple : str
            Such as ``aarch64-linux-android``, ``aarch64-linux-gnu`` or ``x86_64-linux-gnu``.

        Raises
        ------
        FabricError
            If this is a processor itself, or the triple has not a triple's form.
        """
        if self.family == "cpu":
            raise FabricError(
                f"The target {self.name} is a processor itself, so it has no host beside it.",
                "Choose the processor with --target; list them with: fabric targets",
            )
        if not TRIPLE.fullmatch(triple):
            raise FabricError(
                f"{triple!r} is not a target triple.",
                "Write it as architecture-system, such as aarch64-linux-android.",
            )
        return replace(self, host=triple)
