"""What Vulkan's drivers say of devices, in the native backend's words.

From the reports in KhronosGroup/Vulkan-Profiles, which `targets/vulkan.py` names; the H200 and
lavapipe from their drivers themselves.
"""

from __future__ import annotations

from typing import Any

GIB, MIB = 1 << 30, 1 << 20
COMMON = [
    "shaderInt8",
    "shaderInt16",
    "storageBuffer8BitAccess",
    "storageBuffer16BitAccess",
    "bufferDeviceAddress",
    "vulkanMemoryModel",
    "vulkanMemoryModelDeviceScope",
    "shaderIntegerDotProduct",
    "subgroupSizeControl",
    "computeFullSubgroups",
    "subgroupArithmetic",
    "float16Denormals",
]
HALF_MATRIX = [16, 16, 16, "f16", "f16", "f32", "f32"]
BYTE_MATRIX = [16, 16, 32, "s8", "s8", "s32", "s32"]


def _device(name: str, vendor: str, driver: str, vulkan: str, **rest: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "name": name,
        "vendor": vendor,
        "driver": driver,
        "vulkan": vulkan,
        "type": "gpu",
        "unified_memory": False,
        "global_memory": 8 * GIB,
        "max_buffer": 4 * GIB - 1,
        "max_threads": 1024,
        "local_memory": 32768,
        "push_constants": 256,
        "alignment": 4,
        "subgroup_sizes": [32, 64],
        "integer_dot": True,
        "features": [*COMMON, "shaderFloat16", "shaderInt64"],
        "matrices": [],
        **rest,
    }


H200 = _device(
    "NVIDIA H200",
    "NVIDIA",
    "NVIDIA 580.159.04",
    "1.4.312",
    global_memory=150754820096,
    local_memory=49152,
    alignment=16,
    subgroup_sizes=[32, 32],
    features=[*COMMON, "shaderFloat16", "shaderInt64", "cooperativeMatrix"],
    matrices=[[16, 8, 16, "f16", "f16", "f32", "f32"], HALF_MATRIX, BYTE_MATRIX],
)
GTX_1650 = {
    **H200,
    "name": "NVIDIA GeForce GTX 1650",
    "driver": "NVIDIA 610.43.02",
    "features": [*COMMON, "shaderFloat16", "shaderInt64"],
    "matrices": [],
}
RX_5700 = _device(
    "AMD Radeon RX 5700", "AMD", "2.0.353", "1.4.315", max_buffer=2 * GIB, integer_dot=False
)
RX_580 = _device(
    "AMD Radeon RX 580 Series (RADV POLARIS10)",
    "AMD",
    "23.1.7",
    "1.3.246",
    max_buffer=4 * GIB - 4,
    local_memory=65536,
    subgroup_sizes=[64, 64],
    features=[*COMMON, "shaderInt64"],
)
ARC_A770 = _device(
    "Intel(R) Arc(TM) A770 Graphics",
    "Intel",
    "0.405.1234",
    "1.3.275",
    max_buffer=GIB - 4,
    alignment=64,
    subgroup_sizes=[8, 32],
)
# llama.cpp's log of this driver (pull request 27163), and Android 15's requirements.
MALI_G720 = _device(
    "Mali-G720-Immortalis MC12",
    "Arm",
    "Mali-G720-Immortalis MC12 v1.r44p1",
    "1.3.247",
    unified_memory=True,
    max_buffer=4 * GIB - 1,
    alignment=16,
    subgroup_sizes=[16, 16],
)
# llama.cpp's log of this device (ggml, issue 1287), and Android 15's requirements.
ADRENO_750 = _device(
    "Adreno (TM) 750",
    "Qualcomm",
    "512.762.39",
    "1.3.128",
    unified_memory=True,
    max_buffer=128 * MIB,
    alignment=64,
    subgroup_sizes=[64, 128],
    integer_dot=False,
)
LAVAPIPE = _device(
    "llvmpipe (LLVM 15.0.6, 256 bits)",
    "Mesa",
    "llvmpipe Mesa 22.3.6 (LLVM 15.0.6)",
    "1.3.230",
    type="cpu",
    unified_memory=True,
    max_buffer=128 * MIB,
    push_constants=128,
    alignment=16,
    subgroup_sizes=[8, 8],
    integer_dot=False,
)
