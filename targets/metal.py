"""Metal: Apple's own graphics processors, of Macs from the M1 on and of iPhones from the A16 on.

What kernels may take is the same for all of them, from the tables of Apple's "Metal Feature Set
Tables": 31 buffers as arguments, 1024 threads and 32 KiB of memory of a threadgroup (families
Apple4 and later), sums over SIMD groups (Apple7) and products of 8×8 matrices by a SIMD group
(Apple7). A SIMD group has 32 threads (threadExecutionWidth, as all of Apple's own report). They
have 16-bit floats, which keep their values below 2^-14, and no dot product of bytes as one
instruction.
"""

from __future__ import annotations

from .device_api import WINDOW, Description, group_threads
from .target import KIB, MIB, Limits, MatrixUnit, Target

MACOS, IOS = "aarch64-apple-macos", "aarch64-apple-ios"
AUTO = "metal:auto"
"""The name of the target that is made from the description of the device in hand."""
ARGUMENTS = 31
"""Places of a kernel's table of buffers."""
ALIGNMENT = 256
"""Bytes: where a part of a buffer begins that is a buffer of its own (heapBufferSizeAndAlign)."""
PHONE_WINDOW = 256 * MIB
"""Bytes of a buffer that kernels address at once on a phone, as early iPhones' maxBufferLength."""
SIMD = 32
"""Threads of a SIMD group."""
UNITS = (MatrixUnit(8, 8, 8, "float16", "float32"),)
"""``simdgroup_multiply_accumulate`` of ``simdgroup_half8x8`` into ``simdgroup_float8x8``."""
FEATURES = frozenset({"fp16", "shared_memory", "subgroup", "small_halves"})
LEAST_FAMILY = "Apple7"
"""The oldest family that has all of it: the M1's and the A14's."""


def _metal(name: str, description: str, limits: Limits, host: str) -> Target:
    return Target(
        name=name,
        family="gpu",
        description=description,
        options={
            "kind": "metal",
            "max_threads_per_block": limits.max_threads,
            "max_num_threads": limits.max_threads,
            "max_shared_memory_per_block": limits.shared_bytes,
            "max_function_args": ARGUMENTS,
            # No barrier may be left out between the threads of a SIMD group.
            "thread_warp_size": 1,
        },
        device="metal",
        vector_bytes=16,
        features=FEATURES,
        limits=limits,
        host=host,
        matrices=UNITS,
    )


def _limits(window: int) -> Limits:
    return Limits(
        max_buffer=window,
        max_threads=1024,
        shared_bytes=32 * KIB,
        subgroup=SIMD,
        alignment=ALIGNMENT,
    )


METAL = _metal("metal", "any Mac with Apple silicon", _limits(WINDOW), MACOS)
MACS = tuple(
    _metal(f"metal-m{n}", f"Macs with an M{n}, Pro, Max or Ultra", _limits(WINDOW), MACOS)
    for n in (1, 2, 3, 4)
)
PHONE = _metal("ios", "iPhones and iPads from the A16 on", _limits(PHONE_WINDOW), IOS)
_PHONES = {"a16": "iPhone 14 Pro, 15", "a17": "iPhone 15 Pro", "a18": "iPhone 16"}
PHONES = tuple(
    _metal(f"ios-{chip}", f"{chip.upper()}: {phones}", _limits(PHONE_WINDOW), IOS)
    for chip, phones in _PHONES.items()
)
TARGETS = (METAL, *MACS, PHONE, *PHONES)


def from_device(description: Description) -> Target:
    """Return a target with exactly what a device reports.

    Parameters
    ----------
    description : mapping
        What Metal says of the device (``bitfabric.metal.devices``).

    Returns
    -------
    Target
        Named ``metal:auto``, for a Mac.
    """
    limits = Limits(
        max_buffer=min(int(description["max_buffer"]), WINDOW) // KIB * KIB,
        max_threads=group_threads(description),
        shared_bytes=min(int(description["local_memory"]), 64 * KIB),
        subgroup=SIMD,
        alignment=int(description["alignment"]),
    )
    return _metal(AUTO, f"{description['name']}, as it describes itself", limits, MACOS)
