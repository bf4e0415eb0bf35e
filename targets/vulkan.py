"""Vulkan: NVIDIA's, AMD's and Intel's graphics processors, Adreno and Mali phones, and any other.

A named target holds for every device of its name, so its limits are the least that any of them
reports; beside each stands who says so. "Report" means one of vulkan.gpuinfo.org's in the
repository KhronosGroup/Vulkan-Profiles (profiles/LunarG, by the device's name and the driver's
version), which also has what Khronos, LunarG and Android ask of devices (profiles/Khronos,
/LunarG and /Android). What one device in hand reports makes a target of its own,
:func:`from_device`.
"""

from __future__ import annotations

import re

from .device_api import WINDOW, Description, group_threads, is_processor
from .opencl import ANDROID
from .target import KIB, MIB, Limits, MatrixUnit, Target

AUTO = "vulkan:auto"
"""The name of the target that is made from the description of the device in hand."""
SMALL_WINDOW = 128 * MIB
"""Bytes that one descriptor reaches on any device: the least maxStorageBufferRange."""
ALIGNMENT = 256
"""Bytes: the most that a device may ask of where a part of a buffer begins
(minStorageBufferOffsetAlignment)."""
PUSH_CONSTANTS = 128
"""Bytes of push constants that any device has."""
ADDRESS_KEY = "buffer-address"
"""Among a TVM target's keys where its kernels take buffers by their addresses."""
SMALL_HALVES_KEY = "small-halves"
"""Among a TVM target's keys where 16-bit floats below 2^-14 keep their value."""
SMALL_HALVES = "float16Denormals"
"""What the backend calls that among a device's features: shaderDenormPreserveFloat16, whatever is
done with floats of other widths. All reports named below have it."""
V1_1, V1_2, V1_3 = (1, 1), (1, 2), (1, 3)
HALF_UNIT = MatrixUnit(16, 16, 16, "float16", "float32")
BYTE_UNIT = MatrixUnit(16, 16, 32, "int8", "int32")
RESULTS = {"float16": "float32", "int8": "int32"}
"""The dtypes whose small matrices our kernels multiply, and that of the sums."""
_COMPONENTS = {"float16": "f16", "float32": "f32", "int8": "s8", "int32": "s32"}
"""The backend's words for the elements of matrices."""
SIDES = {8, 16, 32}
"""Extents of a matrix that divide those of the tiles."""
_SUBGROUP_OPERATIONS = 0b101
"""Basic and arithmetic (VkSubgroupFeatureFlagBits), which "subgroup" means."""


def _vulkan(
    name: str,
    description: str,
    version: tuple[int, int],
    limits: Limits,
    features: set[str],
    push_constants: int = PUSH_CONSTANTS,
    host: str | None = None,
    eight_bits: bool = True,
    matrices: tuple[MatrixUnit, ...] = (),
) -> Target:
    """Return a target.

    `features` are those of `Target.features`; `eight_bits` tells whether there are 8-bit integers
    and buffers, which LunarG's baseline of 2022 and Android 15 both ask.
    """
    options = {
        "kind": "vulkan",
        "vulkan_api_version": version[0] << 22 | version[1] << 12,
        "max_threads_per_block": limits.max_threads,
        "max_num_threads": limits.max_threads,
        "max_shared_memory_per_block": limits.shared_bytes,
        "max_push_constants_size": push_constants,
        # Kernels read bytes as words, but for tables whose width four does not divide.
        "supports_int8": eight_bits,
        "supports_8bit_buffer": eight_bits,
        "supports_16bit_buffer": "fp16" in features,
        "supports_float16": "fp16" in features,
        # Where buffers of 16 bits are reached by address, pointers to integers of 16 bits are made.
        "supports_int16": {"fp16", "buffer_address"} <= features,
        # Vulkan 1.3 has it everywhere; "int8_dot" says that it is one instruction.
        "supports_integer_dot_product": version >= V1_3,
        "supports_cooperative_matrix": bool(matrices),
        "supported_subgroup_operations": _SUBGROUP_OPERATIONS if "subgroup" in features else 0,
    }
    keys = {"buffer_address": ADDRESS_KEY, "small_halves": SMALL_HALVES_KEY}
    extra = [key for feature, key in keys.items() if feature in features]
    if extra:
        options["keys"] = ["vulkan", "gpu", *extra]
    return Target(
        name=name,
        family="gpu",
        description=description,
        # thread_warp_size stays 1: no barrier may be left out between threads of a subgroup.
        options=options,
        device="vulkan",
        vector_bytes=16,
        features=frozenset(features),
        limits=limits,
        host=host,
        matrices=matrices,
    )


# 128 MiB, 128 bytes of push constants and multiples of 256 bytes are the specification's bounds.
# Threads are the 256 of Android's profile of 2025 and Khronos's of 2022, as the specification asks
# only 128 before 1.4; the 32 KiB are those of LunarG's desktop baseline of 2022 and Khronos's of
# 2026, where the specification asks 16.
VULKAN = _vulkan(
    "vulkan",
    "any device with Vulkan 1.1 or later",
    V1_1,
    Limits(max_buffer=SMALL_WINDOW, max_threads=256, shared_bytes=32 * KIB, alignment=ALIGNMENT),
    {"shared_memory"},
    eight_bits=False,
)

# Reports of an RTX 2060 (537.59), 4070 (551.61) and 5080 (610.62): 1024 threads, 48 KiB, subgroups
# of 32, 4 GiB in a descriptor, 256 bytes of push constants, cooperative matrices; an H200's driver
# (580.159) lists both of ours. A GTX 1650 has no matrices and a GTX 1060 no 16-bit floats.
NVIDIA = _vulkan(
    "vulkan-nvidia",
    "NVIDIA RTX and data-centre cards from Turing (RTX 20) on",
    V1_3,
    Limits(
        max_buffer=WINDOW, max_threads=1024, shared_bytes=48 * KIB, subgroup=32, alignment=ALIGNMENT
    ),
    {"fp16", "shared_memory", "int8_dot", "subgroup", "buffer_address", "small_halves"},
    push_constants=256,
    matrices=(HALF_UNIT, BYTE_UNIT),
)

# Reports of an RX 5700 (AMD 2.0.353, Mesa 26.0), 6600, 6800 XT, 7800 XT and 9070 XT: 1024 threads,
# 32 KiB with AMD's driver and 64 with Mesa's, subgroups of 32 or 64, 2 GiB in a buffer. The RX 5700
# has no dot product as one instruction and no matrices, an RX 580 no 16-bit floats.
AMD = _vulkan(
    "vulkan-amd",
    "AMD Radeon from RX 5000 on",
    V1_3,
    Limits(max_buffer=WINDOW, max_threads=1024, shared_bytes=32 * KIB, alignment=ALIGNMENT),
    {"fp16", "shared_memory", "subgroup", "buffer_address", "small_halves"},
)

# Reports of an HD 620 (Mesa 26.1), UHD 620 (Intel 0.404.2125), UHD 750, Arc A380, A770 and B580:
# 1024 threads, 32 KiB with Intel's driver and 48 or more with Mesa's, subgroups of 8 to 32, and
# four bytes less than 1 GiB in a descriptor. Not all have the dot product as one instruction.
INTEL = _vulkan(
    "vulkan-intel",
    "Intel's graphics from Skylake on, integrated and Arc",
    V1_3,
    Limits(max_buffer=WINDOW - KIB, max_threads=1024, shared_bytes=32 * KIB, alignment=ALIGNMENT),
    {"fp16", "shared_memory", "subgroup", "buffer_address", "small_halves"},
)

# Android 15 asks 16-bit floats and buffers, and arithmetic of subgroups. llama.cpp's logs name
# 32 KiB and subgroups of 128 on an Adreno 750 (ggml, issue 1287), without a fast dot product;
# threads and windows are those of "vulkan".
ADRENO = _vulkan(
    "adreno-vulkan",
    "Qualcomm Adreno phones with Android 15 or later",
    V1_1,
    Limits(max_buffer=SMALL_WINDOW, max_threads=256, shared_bytes=32 * KIB, alignment=ALIGNMENT),
    {"fp16", "shared_memory", "subgroup"},
    host=ANDROID,
)

# A G720's driver (r44p1) has Vulkan 1.3.247, subgroups of 16, 32 KiB and the dot product
# (llama.cpp, pull request 27163); the rest is Android 15's. Memory of a work-group is global memory
# there and gains nothing (Arm's guide, see the OpenCL target).
MALI = _vulkan(
    "mali-vulkan",
    "Arm Mali and Immortalis phones with Android 15 or later",
    V1_3,
    Limits(max_buffer=SMALL_WINDOW, max_threads=256, shared_bytes=32 * KIB, alignment=ALIGNMENT),
    {"fp16", "int8_dot", "subgroup"},
    host=ANDROID,
)

TARGETS = (VULKAN, NVIDIA, AMD, INTEL, ADRENO, MALI)


def vulkan_version(description: Description) -> tuple[int, int]:
    """Return the version of Vulkan that a device has; (0, 0) where it names none."""
    found = re.match(r"(\d+)\.(\d+)", str(description.get("vulkan", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def is_mali(description: Description) -> bool:
    """Return whether a device is Arm's."""
    return re.search(r"\b(mali|immortalis)\b", str(description.get("name")), re.I) is not None


def matrix_units(description: Description) -> list[MatrixUnit]:
    """Return the products of small matrices that a device has and our kernels can use."""
    if not {"cooperativeMatrix", "vulkanMemoryModel"}.issubset(description["features"]):
        return []
    found = []
    for rows, columns, depth, *components in description.get("matrices", []):
        sides = {rows, columns, depth}
        for factors, result in RESULTS.items():
            factor, total = _COMPONENTS[factors], _COMPONENTS[result]
            if components == [factor, factor, total, total] and sides <= SIDES:
                found.append(MatrixUnit(rows, columns, depth, factors, result))
    return found


def _largest(units: list[MatrixUnit]) -> tuple[MatrixUnit, ...]:
    """Return the unit of each dtype that computes most at once."""
    found = []
    for factors in RESULTS:
        mine = [unit for unit in units if unit.factors == factors]
        if mine:
            found.append(max(mine, key=lambda unit: unit.rows * unit.columns * unit.depth))
    return tuple(found)


def from_device(description: Description) -> Target:
    """Return a target with exactly what a device reports.

    Parameters
    ----------
    description : mapping
        What the native backend says of the device (``bitfabric.vulkan.devices``), of which
        ``features``, ``matrices``, ``push_constants`` and ``vulkan`` are Vulkan's own.

    Returns
    -------
    Target
        Named ``vulkan:auto``, for the processor of this machine.
    """
    there = set(description["features"])
    sizes = description.get("subgroup_sizes") or [0]
    # Of what lies in buffers, an address is for those that it computes in (see `Abilities`).
    narrow = ("shaderInt16" in there or "storageBuffer16BitAccess" not in there) and (
        "shaderInt8" in there or "storageBuffer8BitAccess" not in there
    )
    slow_shared = is_mali(description) or is_processor(description)
    features = {
        "fp16": there >= {"shaderFloat16", "storageBuffer16BitAccess"},
        "shared_memory": not slow_shared,
        "int8_dot": bool(description.get("integer_dot")),
        "subgroup": "subgroupArithmetic" in there,
        "buffer_address": "bufferDeviceAddress" in there and narrow,
        "small_halves": SMALL_HALVES in there and vulkan_version(description) >= V1_2,
    }
    limits = Limits(
        max_buffer=min(int(description["max_buffer"]), WINDOW) // KIB * KIB,
        max_threads=group_threads(description),
        shared_bytes=min(int(description["local_memory"]), 64 * KIB),
        subgroup=int(sizes[0]) if sizes[0] == sizes[-1] else 0,
        alignment=int(description["alignment"]),
    )
    return _vulkan(
        AUTO,
        f"{description['name']}, as it describes itself",
        V1_3 if vulkan_version(description) >= V1_3 else V1_1,
        limits,
        {name for name, has in features.items() if has},
        push_constants=min(int(description["push_constants"]), 256),
        eight_bits=there >= {"shaderInt8", "storageBuffer8BitAccess"},
        matrices=_largest(matrix_units(description)),
    )
