"""Vulkan as a device API: which of its devices are used, by which target, and what they lack."""

from __future__ import annotations

import re

from .device_api import Description, DeviceApi, is_processor
from .target import Target
from .vulkan import (
    SMALL_HALVES,
    TARGETS,
    V1_1,
    from_device,
    is_mali,
    matrix_units,
    vulkan_version,
)

ASKED = {
    "supports_int8": ("8-bit integers", {"shaderInt8"}),
    "supports_int16": ("16-bit integers", {"shaderInt16"}),
    "supports_8bit_buffer": ("8-bit buffers", {"storageBuffer8BitAccess"}),
    "supports_16bit_buffer": ("16-bit buffers", {"storageBuffer16BitAccess"}),
    "supports_float16": ("16-bit floats", {"shaderFloat16"}),
    "supports_integer_dot_product": ("8-bit dot products", {"shaderIntegerDotProduct"}),
}
"""What stands for an attribute of a TVM target: in words, and the features of a device."""


def _refusal(description: Description) -> str:
    """Say, after "it", why a device can't be used; empty where it can."""
    version = vulkan_version(description)
    if version < V1_1:
        return f"has Vulkan {version[0]}.{version[1]} where 1.1 is needed"
    return ""


def _candidates(description: Description) -> list[str]:
    """Return the named targets that a device's maker and model suggest, the narrowest first."""
    if is_processor(description):
        return ["vulkan"]
    names = f"{description.get('vendor')} {description['name']}"
    if is_mali(description):
        return ["mali-vulkan"]
    for pattern, target in (
        (r"nvidia", "vulkan-nvidia"),
        (r"\bamd\b|radeon", "vulkan-amd"),
        (r"intel", "vulkan-intel"),
        (r"adreno", "adreno-vulkan"),
    ):
        if re.search(pattern, names, re.I):
            return [target]
    return []


def _lacks(target: Target, description: Description) -> list[str]:
    """Return what a device lacks for a target beyond the limits that all APIs share."""
    there, options, found = set(description["features"]), target.options, []
    code, here = options["vulkan_api_version"], vulkan_version(description)
    version = code >> 22 & 0x7F, code >> 12 & 0x3FF
    if here < version:
        found.append(f"has Vulkan {here[0]}.{here[1]} where the code has {version[0]}.{version[1]}")
    if int(description["push_constants"]) < options["max_push_constants_size"]:
        found.append(
            f"has {description['push_constants']} bytes of push constants where the code has "
            f"{options['max_push_constants_size']}"
        )
    for attribute, (words, features) in ASKED.items():
        if options.get(attribute) and not features <= there:
            found.append(f"has no {words}, which the code uses")
    for feature, words, has in (
        ("subgroup", "sums over subgroups", "subgroupArithmetic" in there),
        ("buffer_address", "addresses of buffers", "bufferDeviceAddress" in there),
        ("small_halves", "16-bit floats below 2^-14", SMALL_HALVES in there),
    ):
        if feature in target.features and not has:
            found.append(f"has no {words}, which the code uses")
    units = matrix_units(description)
    for unit in (each for each in target.matrices if each not in units):
        shape = f"{unit.rows}×{unit.columns}×{unit.depth}"
        found.append(f"has no units for {shape} matrices of {unit.factors}, which the code uses")
    limits = target.limits
    sizes = description.get("subgroup_sizes") or [0]
    if limits is not None and limits.subgroup and not sizes[0] <= limits.subgroup <= sizes[-1]:
        found.append(f"runs {sizes[0]} threads together where the code is for {limits.subgroup}")
    return found


def _notes(description: Description) -> list[str]:
    """Say what to expect of a device."""
    notes = []
    if "shaderFloat16" not in description["features"]:
        notes.append("no 16-bit floats: it computes in 32-bit floats and 8-bit integers")
    if matrix_units(description):
        notes.append("has units for matrices")
    if is_mali(description):
        notes.append("its local memory lies in global memory: kernels keep to registers")
    return notes


def _driver(description: Description) -> str:
    return f"{description['driver']}; Vulkan {description['vulkan']}"


VULKAN_API = DeviceApi(
    kind="vulkan",
    name="Vulkan",
    device_type=7,
    targets=TARGETS,
    from_device=from_device,
    refusal=_refusal,
    candidates=_candidates,
    lacks=_lacks,
    notes=_notes,
    driver=_driver,
    install="Install the loader and your device's driver (apt install libvulkan1 "
    "mesa-vulkan-drivers; NVIDIA's brings its own), or name a driver's library in "
    "FABRIC_VULKAN_LIB.",
    on_request=True,
)
