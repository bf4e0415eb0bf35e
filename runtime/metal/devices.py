"""What Metal says of its devices, in the words that all kinds of devices share."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

from ...targets import FabricError
from ...targets.metal import ALIGNMENT, SIMD
from .objective_c import Messenger

FAMILIES = {f"Apple{n}": 1000 + n for n in range(7, 11)}
"""Of MTLGPUFamily: those of Apple's processors from the M1 on."""
THREADS = 1024
"""Of a threadgroup, in all of these families (Metal Feature Set Tables)."""


def messenger() -> Messenger:
    """Return what sends messages to Metal.

    Raises
    ------
    FabricError
        If the system has none.
    """
    try:
        return Messenger()
    except (OSError, AttributeError) as error:
        raise FabricError(
            f"This system has no Metal: {error}.", "Use --target cpu on this computer."
        ) from error


def list_devices() -> list[dict[str, Any]]:
    """Return what Metal says of every device, in its order, see `targets.device_api`.

    Raises
    ------
    FabricError
        If there is no Metal.
    """
    send = messenger()
    return [_describe(send, device, index) for index, device in enumerate(send.devices())]


def allocated(index: int) -> int:
    """Return the bytes of a device that this process holds."""
    send = messenger()
    return send(send.devices()[index], "currentAllocatedSize")


def _describe(send: Messenger, device: int, index: int) -> dict[str, Any]:
    flag = ctypes.c_bool
    families = [
        name
        for name, number in FAMILIES.items()
        if send(device, "supportsFamily:", number, result=flag)
    ]
    return {
        "index": index,
        "name": send.text(device, "name"),
        "vendor": "Apple",
        "driver": f"macOS {platform.mac_ver()[0]}".strip(),
        "families": families,
        "type": "gpu",
        "global_memory": send(device, "recommendedMaxWorkingSetSize"),
        "max_buffer": send(device, "maxBufferLength"),
        "max_threads": THREADS,
        "local_memory": send(device, "maxThreadgroupMemoryLength"),
        "subgroup_sizes": [SIMD, SIMD],
        "alignment": ALIGNMENT,
        "unified_memory": bool(send(device, "hasUnifiedMemory", result=flag)),
    }
