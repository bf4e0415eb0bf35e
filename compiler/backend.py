"""The native backend of a bundle's device, built for the system that the bundle is for."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

from ..targets import FabricError
from .link import PAGE_BYTES, run_linker, stub_libraries
from .platforms import Platform
from .runtime_files import ROOT

NATIVE = Path("bitfabric") / "runtime" / "native"
"""The backends' folder among the files of the runtime."""
NDK_VARIABLES = ("ANDROID_NDK_ROOT", "ANDROID_NDK_HOME", "ANDROID_NDK")
ANDROID_API = 24
"""The oldest Android that the backend runs on: 7.0."""


def _load_build() -> ModuleType:
    """Return ``runtime/native/build.py``, which stands alone, without the runtime around it."""
    path = ROOT / "runtime" / "native" / "build.py"
    spec = importlib.util.spec_from_file_location("bitfabric_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load_build()


def has_backend(device: str) -> bool:
    """Return whether a kind of device needs a library of ours beside TVM's."""
    return device in build.KINDS


def cross_compiler(platform: Platform) -> str | None:
    """Return the C++ compiler here that builds for a system and has that system's own library.

    It must be the one that TVM's runtime there was built with, or of its kind: they exchange
    objects and exceptions of C++. For Android that is the NDK's, for Linux GCC.
    """
    if platform.system == "linux-gnu":
        return shutil.which(f"{platform.architecture}-linux-gnu-g++")
    if platform.system == "linux-android":
        for variable in NDK_VARIABLES:
            ndk = Path(os.environ.get(variable) or os.devnull)
            name = f"{platform.architecture}-linux-android{ANDROID_API}-clang++"
            for found in sorted(ndk.glob(f"toolchains/llvm/prebuilt/*/bin/{name}")):
                return str(found)
    return None


def add_backend(kind: str, platform: Platform, runtime: Path) -> bool:
    """Add the library of a kind of device to the files of a runtime.

    Returns
    -------
    bool
        Whether it is there. Its sources always are, from which the device builds it on first use.

    Raises
    ------
    FabricError
        If the compiler fails.
    """
    target = runtime / NATIVE / f"libbitfabric_{kind}{platform.library_suffix}"
    if platform.is_this_machine:
        _add_own(kind, target)
        return True
    compiler = cross_compiler(platform)
    if compiler is None:
        return False
    _cross_build(compiler, kind, platform, target)
    return True


def _add_own(kind: str, target: Path) -> None:
    """Copy this machine's library, or build it where the installation has none that fits."""
    installed = build.FOLDER / build.library_name(kind)
    try:
        if build.is_current(installed, kind):
            shutil.copyfile(installed, target)
        else:
            build.build(kind, target)
    except build.BuildError as error:
        raise FabricError(error.cause, error.remedy) from error


def _cross_build(compiler: str, kind: str, platform: Platform, target: Path) -> None:
    """Build a library with a cross compiler; TVM's libraries are named, and found over there."""
    command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-s"]
    command += [f'-DBITFABRIC_BUILD_KEY="{build.build_key(kind)}"']
    command += [f"-I{folder}" for folder in build.include_folders()]
    command += [str(build.source(kind)), "-o", str(target)]
    command += [f"-Wl,-z,max-page-size={PAGE_BYTES}", "-Wl,--no-as-needed"]
    names = [f"lib{name}{platform.library_suffix}" for name in build.LIBRARIES]
    with tempfile.TemporaryDirectory() as folder:
        stubs = stub_libraries(platform, dict.fromkeys(names, ()), Path(folder))
        run_linker([*command, *stubs, "-Wl,--as-needed", "-ldl", "-pthread"], target.name)
