"""ROCm: AMD's graphics processors, by code objects for each architecture.

A target names the architectures (``gfx90a``) that its bundles carry code for; AMD's runtime runs a
code object on the architecture that it names and on no other. The limits hold for all of them
(AMD, instruction set architectures of Vega, CDNA and RDNA): 64 KiB of memory in a work-group, and
vectors of 16 bytes. Work-groups have 256 threads at most here, so that a thread gets all registers
that an instruction can name; larger ones would halve them. All have 16-bit floats and the dot
product of four bytes (LLVM, "User Guide for AMDGPU Backend", `dot1-insts` and `dot8-insts`).

The architectures of gfx9 run 64 threads together; those of gfx10 and later 32 or 64, as the code
says, and ours says 32, as their compilers do by default. The products of small matrices are MFMA
on CDNA and WMMA on RDNA from gfx11 on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .device_api import WINDOW, Description
from .target import KIB, Limits, MatrixUnit, Target

AUTO = "rocm:auto"
"""The name of the target that is made from the description of the device in hand."""
THREADS = 256
ALIGNMENT = 256
"""Bytes; what hipMalloc aligns to."""
FEATURES = frozenset({"fp16", "shared_memory", "int8_dot", "subgroup"})
HALF_UNIT = MatrixUnit(16, 16, 16, "float16", "float32")
BYTE_UNIT = MatrixUnit(16, 16, 16, "int8", "int32")
LONG_BYTE_UNIT = MatrixUnit(16, 16, 32, "int8", "int32")
"""The one of CDNA 3, where the shorter one is gone."""


@dataclass(frozen=True)
class Architecture:
    """What our kernels use of an architecture.

    Attributes
    ----------
    name : str
        LLVM's: ``gfx90a``.
    wave : int
        Threads that run together.
    matrices : tuple of MatrixUnit
        The products it has units for.
    """

    name: str
    wave: int
    matrices: tuple[MatrixUnit, ...] = ()


_MFMA = (HALF_UNIT, BYTE_UNIT)
_MFMA_3 = (HALF_UNIT, LONG_BYTE_UNIT)
_WMMA = (HALF_UNIT, BYTE_UNIT)
ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture("gfx906", 64),
        Architecture("gfx908", 64, _MFMA),
        Architecture("gfx90a", 64, _MFMA),
        Architecture("gfx942", 64, _MFMA_3),
        *(Architecture(f"gfx103{n}", 32) for n in range(7)),
        *(Architecture(f"gfx110{n}", 32, _WMMA) for n in range(4)),
        *(Architecture(f"gfx115{n}", 32, _WMMA) for n in range(4)),
        *(Architecture(f"gfx120{n}", 32, _WMMA) for n in range(2)),
    )
}
"""By name; those that our kernels know."""


def architecture(name: str) -> str:
    """Return an architecture without its settings: ``gfx90a`` of ``gfx90a:sramecc+:xnack-``."""
    return re.sub(r":.*", "", name)


def _rocm(name: str, description: str, *names: str) -> Target:
    """Return a target whose code is for these architectures."""
    kinds = [ARCHITECTURES[each] for each in names]
    same = len({(kind.wave, kind.matrices) for kind in kinds}) == 1
    limits = Limits(
        max_buffer=WINDOW,
        max_threads=THREADS,
        shared_bytes=64 * KIB,
        # Of several kinds it is not known before the code runs, so their kernels do not ask.
        subgroup=kinds[0].wave if same else 0,
        alignment=ALIGNMENT,
    )
    return Target(
        name=name,
        family="gpu",
        description=description,
        options={
            "kind": "rocm",
            "mcpu": names[0],
            "keys": ["rocm", "gpu", *names],
            "max_threads_per_block": THREADS,
            "max_num_threads": THREADS,
            "max_shared_memory_per_block": limits.shared_bytes,
            # No barrier may be left out between threads of a wave.
            "thread_warp_size": 1,
        },
        device="rocm",
        vector_bytes=16,
        features=FEATURES,
        limits=limits,
        matrices=kinds[0].matrices if same else (),
    )


MODELS = (
    _rocm("rocm-gfx906", "AMD Radeon VII, Instinct MI50 and MI60", "gfx906"),
    _rocm("rocm-gfx90a", "AMD Instinct MI210 and MI250", "gfx90a"),
    _rocm("rocm-gfx942", "AMD Instinct MI300A, MI300X and MI325X", "gfx942"),
    _rocm("rocm-gfx1030", "AMD Radeon RX 6800 to 6950, PRO W6800", "gfx1030"),
    _rocm("rocm-gfx1100", "AMD Radeon RX 7900, PRO W7800 and W7900", "gfx1100"),
    _rocm("rocm-gfx1200", "AMD Radeon RX 9060", "gfx1200"),
)
"""One architecture each: these know how many threads run together, and use its matrix units."""
ROCM = _rocm(
    "rocm",
    "AMD by ROCm: code for each architecture below, without matrix units",
    *(name for target in MODELS for name in target.options["keys"] if name.startswith("gfx")),
)
TARGETS = (ROCM, *MODELS)


def architectures(target: Target) -> list[str]:
    """Return the architectures that a target's bundles carry code for, such as ``gfx90a``."""
    return [key for key in target.options["keys"] if key.startswith("gfx")]


def from_device(description: Description) -> Target:
    """Return a target whose code is for exactly a device's architecture.

    Parameters
    ----------
    description : mapping
        What the driver says of the device, of which ``architecture`` is ROCm's own: ``gfx90a``,
        with or without its settings.

    Returns
    -------
    Target
        Named ``rocm:auto``, for the processor of this machine.
    """
    name = architecture(str(description["architecture"]))
    return _rocm(AUTO, f"{description['name']}, as it describes itself", name)
