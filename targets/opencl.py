"""OpenCL: Adreno and Mali phones, NVIDIA's, Intel's and AMD's graphics processors, and any other.

A named target holds for every device of its name, so its limits are the least that any of them
reports; beside each stands who says so. What one device in hand reports makes a target of its own,
:func:`from_device`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .device_api import WINDOW, group_threads
from .target import KIB, MIB, Limits, Target

ANDROID = "aarch64-linux-android"
AUTO = "opencl:auto"
"""The name of the target that is made from the description of the device in hand."""
ADRENO_WINDOW = 128 * MIB
"""Bytes of a buffer that kernels address at once on Adreno. Its drivers allow 1 GiB, but an Adreno
740 refused buffers of 297 MiB (llama.cpp at CodeLinaro, pull request 17), and 128 MiB is what
OpenCL 1.2 promises of any device (CL_DEVICE_MAX_MEM_ALLOC_SIZE)."""


def _opencl(
    name: str,
    description: str,
    limits: Limits,
    features: set[str],
    host: str | None = None,
) -> Target:
    return Target(
        name=name,
        family="gpu",
        description=description,
        # thread_warp_size stays 1: OpenCL promises nothing about threads that run together.
        options={
            "kind": "opencl",
            "max_threads_per_block": limits.max_threads,
            "max_num_threads": limits.max_threads,
            "max_shared_memory_per_block": limits.shared_bytes,
        },
        device="opencl",
        vector_bytes=16,
        features=frozenset(features),
        limits=limits,
        host=host,
    )


# The least that OpenCL 1.2 asks of a device of the full profile, but for the threads, of which it
# asks one: every graphics processor of the last ten years has 256.
OPENCL = _opencl(
    "opencl",
    "any device with OpenCL 1.2 or later",
    Limits(max_buffer=128 * MIB, max_threads=256, shared_bytes=32 * KIB, alignment=512),
    {"shared_memory"},
)

# An H200's driver (580.159) reports 1024 threads, 48 KiB, warps of 32, base addresses of 512 bytes
# and a quarter of the memory in one buffer, so a card of 4 GiB has 1 GiB; and neither cl_khr_fp16
# nor cl_khr_integer_dot_product, nor cl_khr_subgroups. dp4a is there from compute capability 6.1 on
# (PTX ISA, "dp4a"), and the shuffles that subgroups are made of from 3.0 on ("shfl.sync").
NVIDIA = _opencl(
    "opencl-nvidia",
    "NVIDIA from Pascal (GTX 10) on, through OpenCL",
    Limits(max_buffer=WINDOW, max_threads=1024, shared_bytes=48 * KIB, subgroup=32, alignment=512),
    {"shared_memory", "int8_dot", "subgroup"},
)

# Intel's driver reports 256 threads on Gen9, 512 on Xe-LP (a UHD 730) and 1024 on Arc; 64 KiB of
# local memory (OpenCL developer guide for processor graphics); base addresses of 1024 bits. Its
# compiler runs 8, 16 or 32 threads together, as it sees fit. The driver (23.22) lists
# cl_khr_subgroups (AOSC OS, pull request 11403).
INTEL = _opencl(
    "intel-gpu",
    "Intel's graphics, integrated and Arc",
    Limits(max_buffer=WINDOW, max_threads=256, shared_bytes=64 * KIB, alignment=128),
    {"fp16", "shared_memory", "int8_dot", "subgroup"},
)

# AMD's driver reports 256 threads, 64 KiB, base addresses of 1024 bits and 85 % of the memory in
# one buffer; 32 threads run together on RDNA and 64 on the others. It lists no dot product.
# ROCm's driver lists cl_khr_subgroups (of a gfx908, CLRX issue 34), the one before it does not
# (AMD-APP 2264.10, ROCm issue 652).
AMD = _opencl(
    "opencl-amd",
    "AMD Radeon and Instinct, through OpenCL",
    Limits(max_buffer=WINDOW, max_threads=256, shared_bytes=64 * KIB, alignment=256),
    {"fp16", "shared_memory"},
)

# Reports of an 830 (1024 threads, 1 GiB a buffer, 32 KiB, base addresses of 128 bytes), a 750
# (clinfo, issue 92: 1024, 1 GiB, 32 KiB of its own) and a 740 (cl_khr_fp16 and
# cl_khr_integer_dot_product) agree, the last two list cl_khr_subgroups (llama.cpp at CodeLinaro,
# pull request 17). The compiler runs 64 or 128 threads together, as it sees fit.
_ADRENO_LIMITS = Limits(
    max_buffer=ADRENO_WINDOW,
    max_threads=1024,
    shared_bytes=32 * KIB,
    subgroup=64,
    alignment=128,
)
_ADRENO_FEATURES = {"fp16", "shared_memory", "int8_dot", "subgroup"}
_ADRENO_PHONES = {
    "840": "Snapdragon 8 Elite Gen 5",
    "830": "Snapdragon 8 Elite",
    "750": "Snapdragon 8 Gen 3",
    "740": "Snapdragon 8 Gen 2",
    "730": "Snapdragon 8 Gen 1",
}
ADRENO = _opencl(
    "adreno", "Qualcomm Adreno 7xx and 8xx phones", _ADRENO_LIMITS, _ADRENO_FEATURES, ANDROID
)
ADRENO_MODELS = tuple(
    _opencl(f"adreno-{model}", f"Adreno {model}: {chip}", _ADRENO_LIMITS, _ADRENO_FEATURES, ANDROID)
    for model, chip in _ADRENO_PHONES.items()
)

# opencl.gpuinfo.org's report 7217, a G715 on Android: 1024 threads, 3.6 GiB a buffer, 32 KiB of
# local memory, which is global memory (CL_GLOBAL), base addresses of 1024 bits, groups in multiples
# of 16, cl_khr_fp16 and 8-bit dot products; a G610, the G710's smaller sister, agrees (sgminer-arm,
# issue 12), and the later ones are taken to have no less. Local memory gains nothing: Arm's OpenCL
# guide for Bifrost and Valhall, 7.3.2, advises to take it out. 256 MiB a buffer, since a G710 on
# Android reports no more than 1862 MiB of memory, of which drivers give a quarter at least. The
# G610 lists cl_khr_subgroups, too.
_MALI_LIMITS = Limits(
    max_buffer=256 * MIB, max_threads=1024, shared_bytes=32 * KIB, subgroup=16, alignment=128
)
_MALI_FEATURES = {"fp16", "int8_dot", "subgroup"}
_MALI_PHONES = {
    "g925": "Dimensity 9400",
    "g720": "Dimensity 9300",
    "g715": "Tensor G3 and G4, Dimensity 9200",
    "g710": "Tensor G2, Dimensity 9000",
}
# Older ones: a G52 reports 384 threads (ComputeLibrary, issue 999).
MALI = _opencl(
    "mali",
    "Arm Mali and Immortalis phones",
    Limits(max_buffer=256 * MIB, max_threads=256, shared_bytes=32 * KIB, subgroup=0, alignment=128),
    _MALI_FEATURES - {"subgroup"},
    ANDROID,
)
MALI_MODELS = tuple(
    _opencl(
        f"mali-{model}",
        f"Mali-{model.upper()}: {chip}",
        _MALI_LIMITS,
        _MALI_FEATURES,
        ANDROID,
    )
    for model, chip in _MALI_PHONES.items()
)

TARGETS = (OPENCL, NVIDIA, INTEL, AMD, ADRENO, *ADRENO_MODELS, MALI, *MALI_MODELS)


def is_adreno(description: Mapping[str, Any]) -> bool:
    """Return whether a device is Qualcomm's; its driver may name the model in the version alone."""
    return "adreno" in f"{description.get('name')} {description.get('version')}".lower()


def is_nvidia(description: Mapping[str, Any]) -> bool:
    """Return whether a device is driven by NVIDIA's own driver."""
    return "cl_nv_device_attribute_query" in description.get("extensions", ())


def has_subgroups(description: Mapping[str, Any]) -> bool:
    """Return whether our kernels' subgroup functions work: by cl_khr_subgroups, or NVIDIA's."""
    return "cl_khr_subgroups" in description.get("extensions", ()) or is_nvidia(description)


def window(description: Mapping[str, Any]) -> int:
    """Return how many bytes of one buffer kernels should address on a device: whole KiB."""
    most = ADRENO_WINDOW if is_adreno(description) else WINDOW
    return min(int(description["max_buffer"]), most) // KIB * KIB


def subgroup(description: Mapping[str, Any]) -> int:
    """Return how many threads run together; 0 where it is not told or the compiler chooses."""
    sizes = description.get("subgroup_sizes") or [0]
    return int(sizes[0]) if len(sizes) == 1 else 0


def from_device(description: Mapping[str, Any]) -> Target:
    """Return a target with exactly what a device reports.

    Parameters
    ----------
    description : mapping
        What the native backend says of the device (``bitfabric.opencl.devices``): sizes in bytes;
        ``max_buffer``, ``max_threads``, ``local_memory``, ``local_memory_emulated``,
        ``alignment``, ``subgroup_sizes``, ``fp16``, ``integer_dot``, ``extensions``, ``name`` and
        ``version`` are read.

    Returns
    -------
    Target
        Named ``opencl:auto``, for the processor of this machine.
    """
    extensions = set(description.get("extensions", ()))
    # Of our kernels' ways to a dot product, those that are one instruction.
    dot = (
        bool(description.get("integer_dot"))
        or "cl_arm_integer_dot_product_accumulate_int8" in extensions
        or is_nvidia(description)
    )
    features = {
        "fp16": bool(description.get("fp16")),
        "shared_memory": not description.get("local_memory_emulated"),
        "int8_dot": dot,
        "subgroup": has_subgroups(description),
    }
    limits = Limits(
        max_buffer=window(description),
        max_threads=group_threads(description),
        shared_bytes=min(int(description["local_memory"]), 64 * KIB),
        subgroup=subgroup(description),
        alignment=int(description["alignment"]),
    )
    return _opencl(
        AUTO,
        f"{description['name']}, as it describes itself",
        limits,
        {name for name, there in features.items() if there},
    )
