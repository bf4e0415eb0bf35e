"""What `fabric doctor` knows of each API's drivers: where they are listed, and how to get one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Drivers:
    """The drivers of one API.

    Attributes
    ----------
    folders : tuple of str
        Where they are listed, a file each; ``~`` is the person's own folder. None where the system
        has them built in.
    pattern : str
        Of those files' names.
    folder_variable : str
        The environment variable that names another folder; "" where there is none.
    variables : tuple of str
        Those that change which drivers and devices are used.
    install : str
        The remedy on a computer where none is listed.
    phone : str
        The remedy on a phone without a device.
    makers : dict
        For the makers whose graphics processors it reaches, by their number on the PCI bus, what to
        install.
    """

    folders: tuple[str, ...]
    pattern: str
    folder_variable: str
    variables: tuple[str, ...]
    install: str
    phone: str
    makers: dict[str, str]


MAKERS = {
    "0x10de": ("NVIDIA", "nvidia"),
    "0x8086": ("Intel", "intel"),
    "0x1002": ("AMD", r"\bamd\b|advanced micro|radeon"),
}
"""Of graphics processors on the PCI bus: the maker, and how a device of its is known."""

DRIVERS = {
    "cuda": Drivers(
        folders=("/proc/driver/nvidia",),
        pattern="version",
        folder_variable="",
        variables=("CUDA_MODULE_LOADING", "CUDA_LAUNCH_BLOCKING"),
        install="For an NVIDIA graphics processor, install its driver, 580 or later.",
        phone="Phones have none; use --target vulkan:auto.",
        makers={"0x10de": "Install NVIDIA's driver, 580 or later, and: "
                "pip install 'nvidia-cuda-runtime>=13,<14'"},
    ),
    "metal": Drivers(
        folders=(),
        pattern="",
        folder_variable="",
        variables=("MTL_DEBUG_LAYER", "MTL_SHADER_VALIDATION", "METAL_DEVICE_WRAPPER_TYPE"),
        install="Metal is Apple's, and part of macOS; on this computer, use another target.",
        phone="Phones with Android have none; use --target vulkan:auto.",
        makers={},
    ),
    "opencl": Drivers(
        folders=("/etc/OpenCL/vendors",),
        pattern="*.icd",
        folder_variable="OCL_ICD_VENDORS",
        variables=(
            "FABRIC_OPENCL_LIB", "OCL_ICD_VENDORS", "OCL_ICD_FILENAMES",
            "OCL_ICD_ASSUME_ICD_EXTENSION", "OPENCL_VENDOR_PATH", "POCL_DEVICES", "RUSTICL_ENABLE",
        ),
        install="Install your graphics processor's, or one for the processor: "
        "apt install ocl-icd-libopencl1 pocl-opencl-icd",
        phone="Run: pkg install ocl-icd opencl-vendor-driver, or set FABRIC_OPENCL_LIB to the "
        "phone's own libOpenCL.so, which lies in /vendor/lib64.",
        makers={
            "0x10de": "Run: apt install nvidia-opencl-icd (Debian), or the libnvidia-compute "
            "package of your driver's version (Ubuntu).",
            "0x8086": "Run: apt install intel-opencl-icd",
            "0x1002": "Install ROCm's OpenCL (rocm-opencl-icd or AMD's rocm-opencl), or apt "
            "install mesa-opencl-icd and set RUSTICL_ENABLE=radeonsi.",
        },
    ),
    "rocm": Drivers(
        folders=("/opt/rocm/.info",),
        pattern="version",
        folder_variable="",
        variables=(
            "FABRIC_HIP_LIB", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
            "HSA_OVERRIDE_GFX_VERSION",
        ),
        install="For an AMD graphics processor, install ROCm, 6.0 or later.",
        phone="Phones have none; use --target vulkan:auto.",
        makers={"0x1002": "Install ROCm, 6.0 or later, and see that you may open /dev/kfd (group "
                "render); many Radeons that ROCm does not serve run --target vulkan:auto."},
    ),
    "vulkan": Drivers(
        folders=(
            "/etc/vulkan/icd.d", "/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d",
            "~/.local/share/vulkan/icd.d",
        ),
        pattern="*.json",
        folder_variable="",
        variables=(
            "FABRIC_VULKAN_LIB", "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES",
            "VK_LOADER_DRIVERS_SELECT", "VK_LOADER_DRIVERS_DISABLE", "VK_INSTANCE_LAYERS",
            "MESA_VK_DEVICE_SELECT",
        ),
        install="Install the loader and your graphics processor's: "
        "apt install libvulkan1 mesa-vulkan-drivers (NVIDIA's comes with its own driver).",
        phone="Run: pkg install vulkan-loader-android, or set FABRIC_VULKAN_LIB to the phone's own "
        "libvulkan.so, which lies in /system/lib64.",
        makers={
            "0x10de": "Run: apt install nvidia-vulkan-icd (Debian), or the libnvidia-gl package of "
            "your driver's version (Ubuntu).",
            "0x8086": "Run: apt install mesa-vulkan-drivers",
            "0x1002": "Run: apt install mesa-vulkan-drivers",
        },
    ),
}  # fmt: skip
"""By the API's kind."""
SHARED_VARIABLES = ("FABRIC_DEVICE", "CUDA_VISIBLE_DEVICES")
