"""Devices as Metal describes them.

Families, threads and memory of a threadgroup are those of Apple's Metal Feature Set Tables; sizes
of memory are made up, but of the size that such machines have.
"""

from __future__ import annotations

from typing import Any

GIB = 1 << 30


def _device(name: str, families: list[str], memory: int, **other: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "name": name,
        "vendor": "Apple",
        "driver": "macOS 15.1",
        "families": families,
        "type": "gpu",
        "global_memory": memory,
        "max_buffer": memory * 3 // 4,
        "max_threads": 1024,
        "local_memory": 32768,
        "subgroup_sizes": [32, 32],
        "alignment": 256,
        "unified_memory": True,
        **other,
    }


M1 = _device("Apple M1", ["Apple7"], 5 * GIB)
M4_MAX = _device("Apple M4 Max", ["Apple7", "Apple8", "Apple9"], 27 * GIB)
M9 = _device("Apple M9", ["Apple7", "Apple8", "Apple9"], 27 * GIB)
A17 = _device("Apple A17 Pro GPU", ["Apple7", "Apple8", "Apple9"], 3 * GIB)
INTEL_MAC = _device("AMD Radeon Pro 5500M", [], 8 * GIB, vendor="AMD", unified_memory=False)
SMALL = _device("Apple M1", ["Apple7"], GIB)
