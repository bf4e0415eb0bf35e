"""What NVIDIA's driver says of devices, in the words of `runtime.cuda.devices`.

The limits are those of the CUDA C++ Programming Guide's table of compute capabilities; the H200's
memory is what its driver says through OpenCL.
"""

from __future__ import annotations

from typing import Any

GIB = 1 << 30


def _device(name: str, capability: list[int], memory: int, **rest: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "name": name,
        "vendor": "NVIDIA",
        "driver": "CUDA 13.0",
        "cuda": 13000,
        "capability": capability,
        "type": "gpu",
        "compute_units": 72,
        "clock_mhz": 1700,
        "global_memory": memory,
        "max_buffer": memory,
        "max_threads": 1024,
        "local_memory": 49152,
        "subgroup_sizes": [32, 32],
        "alignment": 256,
        "unified_memory": False,
        **rest,
    }


H200 = _device("NVIDIA H200", [9, 0], 150754820096, compute_units=132)
RTX_2060 = _device("NVIDIA GeForce RTX 2060", [7, 5], 6 * GIB)
RTX_4090 = _device("NVIDIA GeForce RTX 4090", [8, 9], 24 * GIB)
B300 = _device("NVIDIA B300", [10, 3], 288 * GIB)
GTX_1080 = _device("NVIDIA GeForce GTX 1080", [6, 1], 8 * GIB)
OLD_DRIVER = _device("NVIDIA A100-SXM4-40GB", [8, 0], 40 * GIB, cuda=12040, driver="CUDA 12.4")
