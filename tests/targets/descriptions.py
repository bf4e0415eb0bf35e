"""What drivers say of devices, in the native backend's words, from reports of the real ones."""

from __future__ import annotations

from typing import Any

GIB, MIB = 1 << 30, 1 << 20


def _device(name: str, vendor: str, platform: str, version: str, **rest: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "name": name,
        "vendor": vendor,
        "platform": platform,
        "version": version,
        "driver": "",
        "type": "gpu",
        "compute_units": 8,
        "clock_mhz": 1000,
        "local_memory": 32768,
        "local_memory_emulated": False,
        "max_threads": 1024,
        "max_thread_dimensions": [1024, 1024, 1024],
        "subgroup": 0,
        "subgroup_sizes": [],
        "alignment": 128,
        "fp16": True,
        "fp64": False,
        "integer_dot": True,
        "unified_memory": True,
        "extensions": [],
        **rest,
    }


# llama.cpp's log on a OnePlus 13.
ADRENO_830 = _device(
    "QUALCOMM Adreno(TM) 830",
    "QUALCOMM",
    "QUALCOMM Snapdragon(TM)",
    "OpenCL 3.0 Adreno(TM) 830",
    driver="OpenCL 3.0 QUALCOMM build: commit unknown Compiler E031.47.18.21",
    global_memory=5556 * MIB,
    max_buffer=1024 * MIB,
    extensions=[
        "cl_khr_fp16",
        "cl_khr_integer_dot_product",
        "cl_khr_subgroups",
        "cl_qcom_dot_product8",
    ],
)
# Many drivers name the model in the version alone.
ADRENO_740 = {
    **ADRENO_830,
    "name": "QUALCOMM Adreno(TM)",
    "version": "OpenCL 3.0 Adreno(TM) 740",
    "driver": "OpenCL 3.0 QUALCOMM build: 0676.73 Compiler E031.41.03.62",
}
# opencl.gpuinfo.org, report 7217.
MALI_G715 = _device(
    "Mali-G715 r0p0",
    "ARM",
    "ARM Platform",
    "OpenCL 3.0 v1.r54p3-00eac0.3b2383583c05a191e2a44038212e020d",
    driver="3.0",
    global_memory=7722287104,
    max_buffer=3861143552,
    local_memory_emulated=True,
    compute_units=7,
    extensions=[
        "cl_khr_fp16",
        "cl_khr_integer_dot_product",
        "cl_khr_subgroups",
        "cl_arm_integer_dot_product_accumulate_int8",
    ],
)
# Read from the driver itself.
H200 = _device(
    "NVIDIA H200",
    "NVIDIA Corporation",
    "NVIDIA CUDA",
    "OpenCL 3.0 CUDA",
    driver="580.159.04",
    global_memory=150109880320,
    max_buffer=37527470080,
    local_memory=49152,
    max_thread_dimensions=[1024, 1024, 64],
    subgroup=32,
    subgroup_sizes=[32],
    alignment=512,
    fp16=False,
    fp64=True,
    integer_dot=False,
    unified_memory=False,
    extensions=["cl_khr_fp64", "cl_nv_device_attribute_query", "cl_nv_create_buffer"],
)
POCL = _device(
    "pthread-skylake-avx512-AMD EPYC",
    "AuthenticAMD",
    "Portable Computing Language",
    "OpenCL 3.0 PoCL HSTR: pthread-x86_64-pc-linux-gnu-skylake-avx512",
    driver="3.1+debian",
    type="cpu",
    global_memory=13919014912,
    max_buffer=4294967296,
    local_memory=1048576,
    local_memory_emulated=True,
    max_threads=4096,
    max_thread_dimensions=[4096, 4096, 4096],
    fp16=False,
    fp64=True,
    integer_dot=False,
)
# Mesa's former driver of AMD's cards, as Debian 10 had it.
CLOVER = _device(
    "Radeon RX 580 Series (POLARIS10, DRM 3.27.0, 4.19.0-9-amd64, LLVM 7.0.1)",
    "AMD",
    "Clover",
    "OpenCL 1.1 Mesa 18.3.6",
    global_memory=8 * GIB,
    max_buffer=2 * GIB,
    max_threads=256,
    fp16=False,
    integer_dot=False,
)
UHD_730 = _device(
    "Intel(R) UHD Graphics 730",
    "Intel(R) Corporation",
    "Intel(R) OpenCL Graphics",
    "OpenCL 3.0 NEO ",
    driver="25.35.35096",
    global_memory=28 * GIB,
    max_buffer=4 * GIB - 4096,
    local_memory=65536,
    max_threads=512,
    subgroup=32,
    subgroup_sizes=[8, 16, 32],
    extensions=["cl_khr_fp16", "cl_khr_subgroups", "cl_intel_required_subgroup_size"],
)
RX_480 = _device(
    "gfx803",
    "Advanced Micro Devices, Inc.",
    "AMD Accelerated Parallel Processing",
    "OpenCL 1.2 ",
    driver="3625.0 (HSA1.1,LC)",
    global_memory=8 * GIB,
    max_buffer=7287183769,
    local_memory=65536,
    max_threads=256,
    subgroup=64,
    subgroup_sizes=[64],
    integer_dot=False,
    unified_memory=False,
    extensions=["cl_khr_fp16", "cl_amd_device_attribute_query"],
)
