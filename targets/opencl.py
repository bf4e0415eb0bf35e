"""OpenCL: Adreno and Mali phones, Intel's and NVIDIA's graphics processors, and any other."""

from __future__ import annotations

from .target import MIB, Limits, Target

ANDROID = "aarch64-linux-android"


def _opencl(
    name: str, description: str, limits: Limits, features: set[str], host: str | None = None
) -> Target:
    return Target(
        name=name,
        family="gpu",
        description=description,
        options={
            "kind": "opencl",
            "max_threads_per_block": limits.max_threads,
            "max_shared_memory_per_block": limits.shared_bytes,
        },
        device="opencl",
        vector_bytes=16,
        features=frozenset(features),
        limits=limits,
        host=host,
    )


OPENCL = _opencl(
    "opencl",
    "any device with OpenCL 1.2 or later",
    Limits(max_buffer=128 * MIB, max_threads=256, shared_bytes=32 << 10, alignment=512),
    {"shared_memory"},
)
TARGETS = (OPENCL,)
