"""What NVIDIA's driver says of its devices, in the words that all kinds of devices share."""

from __future__ import annotations

import ctypes
from typing import Any

from ...targets import FabricError
from .libraries import driver

ALIGNMENT = 256
"""Bytes; what cudaMalloc aligns to."""
_NAME_BYTES = 256
_ATTRIBUTES = {
    "max_threads": 1,
    "local_memory": 8,
    "warp": 10,
    "clock_khz": 13,
    "compute_units": 16,
    "integrated": 18,
    "major": 75,
    "minor": 76,
}
"""Of CUdevice_attribute (cuda.h): the largest block, its shared memory, …"""


class Driver:
    """The driver's functions, each of which returns 0 where it succeeds.

    Raises
    ------
    FabricError
        If there is no driver, or it finds no device.
    """

    def __init__(self) -> None:
        self._library = driver()
        self("cuInit", 0)

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function."""
        status = self.status(name, *arguments)
        if status:
            found = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(found))
            said = found.value.decode() if found.value else f"error {status}"
            raise FabricError(
                f"NVIDIA's driver can't be used: {said} ({name}).",
                "Check it with nvidia-smi; 580 or later is needed.",
            )

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function that may fail, and return its status."""
        return int(getattr(self._library, name)(*arguments))

    def number(self, name: str, *arguments: Any) -> int:
        """Return the number that a function writes to its first argument."""
        value = ctypes.c_int()
        self(name, ctypes.byref(value), *arguments)
        return value.value


def list_devices() -> list[dict[str, Any]]:
    """Return what the driver says of every device, in its order, see `targets.device_api`.

    Raises
    ------
    FabricError
        If there is no driver, or it finds no device.
    """
    driver = Driver()
    version = driver.number("cuDriverGetVersion")
    return [_describe(driver, version, i) for i in range(driver.number("cuDeviceGetCount"))]


def _describe(driver: Driver, version: int, index: int) -> dict[str, Any]:
    device = driver.number("cuDeviceGet", index)
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    driver("cuDeviceGetName", name, _NAME_BYTES, device)
    driver("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    found = {
        key: driver.number("cuDeviceGetAttribute", number, device)
        for key, number in _ATTRIBUTES.items()
    }
    return {
        "index": index,
        "name": name.value.decode(errors="replace"),
        "vendor": "NVIDIA",
        "driver": f"CUDA {version // 1000}.{version % 1000 // 10}",
        "cuda": version,
        "capability": [found["major"], found["minor"]],
        "type": "gpu",
        "compute_units": found["compute_units"],
        "clock_mhz": found["clock_khz"] // 1000,
        "global_memory": memory.value,
        "max_buffer": memory.value,
        "max_threads": found["max_threads"],
        "local_memory": found["local_memory"],
        "subgroup_sizes": [found["warp"], found["warp"]],
        "alignment": ALIGNMENT,
        "unified_memory": bool(found["integrated"]),
    }
