"""CUDA: NVIDIA's graphics processors, by machine code for each architecture.

A target names the architectures that its bundles carry code for. Code for ``sm_80`` also runs on
later processors of the same major number, 8.6 and 8.9; any later processor of another number runs
the virtual code that goes along, which its driver compiles when a bundle is opened. The limits are
those that all of them share (CUDA C++ Programming Guide, "Compute Capabilities"): 1024 threads of a
block, 48 KiB of shared memory that needs no opting in, warps of 32. All have 16-bit floats, the dot
product of four bytes, and tensor cores for 16-bit floats and for bytes.
"""

from __future__ import annotations

from .device_api import WINDOW, Description
from .target import KIB, Limits, MatrixUnit, Target

AUTO = "cuda:auto"
"""The name of the target that is made from the description of the device in hand."""
LEAST_CAPABILITY = (7, 5)
"""The oldest architecture that CUDA 13 compiles for: Turing."""
ALIGNMENT = 256
"""Bytes; what cudaMalloc aligns to."""
UNITS = (
    MatrixUnit(16, 16, 16, "float16", "float32"),
    MatrixUnit(16, 16, 16, "int8", "int32"),
)
"""The products of ``nvcuda::wmma`` that our kernels use; all architectures since Turing have
them."""
LIMITS = Limits(
    max_buffer=WINDOW, max_threads=1024, shared_bytes=48 * KIB, subgroup=32, alignment=ALIGNMENT
)
FEATURES = frozenset({"fp16", "shared_memory", "int8_dot", "subgroup", "fragments"})
EXACT = {(9, 0): ("sm_90a", "warpgroup")}
"""By the compute capability: the architecture whose code uses what no other has and so runs on no
other, and the feature that names it. Hopper's tensor cores take whole warpgroups' products."""


def _cuda(name: str, description: str, *architectures: str) -> Target:
    """Return a target whose code is for these, such as ``sm_80``, the oldest first."""
    own = {feature for exact, feature in EXACT.values() if architectures == (exact,)}
    return Target(
        name=name,
        family="gpu",
        description=description,
        options={
            "kind": "cuda",
            "arch": architectures[0],
            "keys": ["cuda", "gpu", *architectures],
            "max_threads_per_block": LIMITS.max_threads,
            "max_num_threads": LIMITS.max_threads,
            "max_shared_memory_per_block": LIMITS.shared_bytes,
        },
        device="cuda",
        vector_bytes=16,
        features=FEATURES | own,
        limits=LIMITS,
        matrices=UNITS,
    )


CUDA = _cuda(
    "cuda",
    "NVIDIA from Turing (RTX 20) on, code for each architecture",
    "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120",
)  # fmt: skip
MODELS = (
    _cuda("cuda-sm75", "NVIDIA Turing: RTX 20, GTX 16, T4", "sm_75"),
    _cuda("cuda-sm80", "NVIDIA A100 and A30", "sm_80"),
    _cuda("cuda-sm86", "NVIDIA Ampere: RTX 30, A10, A40", "sm_86"),
    _cuda("cuda-sm89", "NVIDIA Ada: RTX 40, L4, L40", "sm_89"),
    _cuda("cuda-sm90", "NVIDIA Hopper: H100, H200, GH200", "sm_90a"),
    _cuda("cuda-sm100", "NVIDIA Blackwell: B200, GB200", "sm_100"),
    _cuda("cuda-sm120", "NVIDIA Blackwell: RTX 50, RTX PRO", "sm_120"),
)
"""One architecture each, which compile in a part of the time."""
TARGETS = (CUDA, *MODELS)


def architectures(target: Target) -> list[str]:
    """Return the architectures that a target's bundles carry code for, such as ``sm_80``."""
    return [key for key in target.options["keys"] if key.startswith("sm_")]


def capability_of(architecture: str) -> tuple[int, int]:
    """Return an architecture's compute capability: (8, 0) of ``sm_80``, (12, 0) of ``sm_120``."""
    number = int(architecture.removeprefix("sm_").removesuffix("a"))
    return divmod(number, 10)


def is_exact(architecture: str) -> bool:
    """Tell whether an architecture's code runs on processors of its own number alone."""
    return architecture.endswith("a")


def capability(description: Description) -> tuple[int, int]:
    """Return the compute capability that a device reports."""
    major, minor = description["capability"]
    return int(major), int(minor)


def from_device(description: Description) -> Target:
    """Return a target whose code is for exactly a device's architecture.

    Parameters
    ----------
    description : mapping
        What the driver says of the device, of which ``capability`` is CUDA's own: major and minor.

    Returns
    -------
    Target
        Named ``cuda:auto``, for the processor of this machine.
    """
    major, minor = capability(description)
    architecture, _ = EXACT.get((major, minor), (f"sm_{10 * major + minor}", ""))
    return _cuda(AUTO, f"{description['name']}, as it describes itself", architecture)
