"""The Vulkan loader is opened by the name that it has on each system."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from bitfabric.runtime.native.build import FOLDER, include_folders

WINDOWS, ANDROID, LINUX = "x86_64-w64-mingw32-g++", "aarch64-linux-gnu-g++", "c++"
SYSTEMS = {
    "Windows": (WINDOWS, [], ["vulkan-1.dll"]),
    "Android": (ANDROID, ["-D__ANDROID__"], ["libvulkan.so"]),
    "Linux": (LINUX, [], ["libvulkan.so.1", "libvulkan.so"]),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_names_of_the_loader(system: str) -> None:
    """The code for a system is valid C++ there, and has these names and no others."""
    compiler, options, names = SYSTEMS[system]
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    folders = [f"-I{folder}" for folder in (FOLDER, *include_folders())]
    command = [compiler, "-std=c++17", *folders, *options, "-x", "c++"]
    source = FOLDER / "vulkan" / "api.h"
    subprocess.run([*command, "-fsyntax-only", str(source)], check=True)
    done = subprocess.run(
        [*command, "-E", "-P", str(source)], capture_output=True, text=True, check=True
    )
    (listed,) = re.findall(r'library_\("FABRIC_VULKAN_LIB",\s*\{([^}]*)\}', done.stdout)
    assert re.findall(r'"([^"]+)"', listed) == names
