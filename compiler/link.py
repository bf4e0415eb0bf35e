"""Linking ``module.so``: with the system's C++ compiler for this machine, with ziglang for others.

A module for another Linux, Android among them, is linked by LLD alone: no library of that system is
needed, since all that the code may ask of it is known here by name. Anything else fails the link,
and does so here instead of on the device.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tvm import relax

from ..targets import FabricError, Target, host_triple, machine
from .carrier import pack_imports
from .mach_o import make_ios
from .platforms import Platform, platform_of

PAGE_BYTES = 16384
"""Android from 15 on, and some Arm kernels, have pages of 16 KiB; a multiple of 4 KiB fits all."""

HALF_FLOATS = Path(__file__).with_name("half_floats.c")
LEAST_APPLE = {"macos": "11.0", "ios": "16.0"}
"""The oldest systems of Apple's that modules are for: TVM's packages are for macOS 11, the first
for Apple silicon, and the A16 came with iOS 16."""

FFI_SYMBOLS = (
    "TVMFFIEnvModLookupFromImports",
    "TVMFFIErrorSetRaisedFromCStr",
    "TVMFFIErrorSetRaisedFromCStrParts",
    "TVMFFIFunctionCall",
    "TVMFFIHandleInitOnce",
)
"""What TVM's generated code calls by name; the rest it is handed when it is loaded."""
C_SYMBOLS = ("memcmp", "memcpy", "memmove", "memset")
"""What LLVM makes of loops that copy and fill."""
_FUNCTIONS = (
    "acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf exp exp2 expm1 fabs "
    "floor fma fmax fmin fmod hypot ldexp log log10 log1p log2 nearbyint pow rint round sin sinh "
    "sqrt tan tanh trunc"
)
MATH_SYMBOLS = tuple(f"{name}{kind}" for name in _FUNCTIONS.split() for kind in ("", "f"))
"""What TVM and LLVM make of mathematical functions, for doubles and for floats."""

_EMULATION = {"aarch64": "aarch64linux", "x86_64": "elf_x86_64"}
_LIBRARIES = {
    "linux-gnu": {"libm.so.6": MATH_SYMBOLS, "libc.so.6": C_SYMBOLS},
    "linux-android": {"libm.so": MATH_SYMBOLS, "libc.so": C_SYMBOLS},
}


def linker(target: Target) -> list[str]:
    """Return the command that links shared objects for a target.

    Raises
    ------
    FabricError
        If the machine has no C++ compiler, or the target is another machine's, and the package
        ziglang, which links for any, is not installed.
    """
    native, apple = is_native(target), sys.platform == "darwin"
    # On a Mac one that takes C, in which our part of the module is.
    for name in (("cc", "clang") if apple else ("c++", "g++", "clang++", "cc")) if native else ():
        found = shutil.which(name)
        if found:
            return [found, *(_apple_options(machine()) if apple else ["-shared", "-fPIC"])]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", *_zig_command(target, native)]
    raise FabricError(
        "There is no linker on this machine: no C++ compiler was found."
        if native
        else f"There is no linker for {target.name} on {host_triple(target)} on this machine, "
        f"which is {machine()}.",
        ("Install one (apt install g++), or: " if native else "Install one for any machine: ")
        + "pip install 'bitfabric[linker]'",
    )


def is_native(target: Target) -> bool:
    """Return whether a target's host code is for this machine's own system."""
    platform = platform_of(target)
    if platform is None:
        return host_triple(target).startswith(machine())
    return platform.is_this_machine


def _zig_command(target: Target, native: bool) -> list[str]:
    """Return ziglang's program that links for a target, with what it always needs."""
    platform = platform_of(target)
    if platform is None or native:
        return ["cc", "-target", host_triple(target), "-shared", "-fPIC"]
    if platform.system in LEAST_APPLE:
        # An iPhone's is made of a Mac's: the linker knows no library of iOS.
        zig = f"{platform.architecture}-macos.{LEAST_APPLE['macos']}"
        return ["cc", "-target", zig, *_apple_options(platform.architecture)]
    return ["ld.lld", "-m", _EMULATION[platform.architecture], "-shared"]


def _apple_options(architecture: str) -> list[str]:
    """Return what the linkers of Apple's systems are told besides the objects."""
    # TVM's libraries are found among what the process has loaded.
    options = ["-shared", "-undefined", "dynamic_lookup"]
    return [*options, "-O2", str(HALF_FLOATS)] if architecture == "aarch64" else options


def link(executable: relax.VMExecutable, path: Path, target: Target) -> None:
    """Write an executable as a shared library that TVM's runtime loads.

    Raises
    ------
    FabricError
        If there is no linker, or the code needs what no library of the target has.
    """
    command, platform = linker(target), platform_of(target)

    def create_shared(output: str, objects: list[str], **_: object) -> None:
        if "ld.lld" not in command or platform is None:
            # A library of Apple's tells its path; without a name it would be that of this machine.
            apple = platform is not None and platform.system in LEAST_APPLE
            name = [f"-Wl,-install_name,@rpath/{path.name}"] if apple else []
            run_linker([*command, *name, "-o", output, *objects], path.name)
            if platform is not None and platform.system == "ios":
                make_ios(Path(output), LEAST_APPLE["ios"])
            return
        with tempfile.TemporaryDirectory() as folder:
            libraries = {**_LIBRARIES[platform.system], "libtvm_ffi.so": FFI_SYMBOLS}
            stubs = stub_libraries(platform, libraries, Path(folder))
            options = ["-z", f"max-page-size={PAGE_BYTES}", "--hash-style=both", "--strip-debug"]
            options += ["-z", "noexecstack", "--no-undefined", "--as-needed"]
            run_linker([*command, *options, "-o", output, *objects, *stubs], path.name)

    create_shared.output_format = "so"  # type: ignore[attr-defined]
    pack = pack_imports if target.device in ("cuda", "rocm", "vulkan") else None
    executable.mod.export_library(str(path), fcompile=create_shared, fpack_imports=pack)


def stub_libraries(
    platform: Platform, libraries: Mapping[str, Iterable[str]], folder: Path
) -> list[str]:
    """Write libraries of a Linux that have names and symbols, and nothing in them.

    What is linked with them names them as needed. TVM's are treated so, too: Android finds the
    symbols of a library only in those that it names, however they were loaded.

    Parameters
    ----------
    platform : Platform
        The Linux.
    libraries : mapping
        The symbols of each library, by its name.
    folder : pathlib.Path
        Where to write them.

    Returns
    -------
    list of str
        Their paths.
    """
    empty = folder / "empty"
    empty.touch()
    linker = [sys.executable, "-m", "ziglang", "ld.lld", "-shared"]
    paths = []
    for name, symbols in libraries.items():
        paths.append(str(folder / name))
        defined = [f"--defsym={symbol}=0" for symbol in symbols]
        options = ["-m", _EMULATION[platform.architecture], "-soname", name, "-o", paths[-1]]
        # The linker asks for an input file; an empty one of no format will do.
        run_linker([*linker, *options, *defined, "--format=binary", str(empty)], name)
    return paths


def run_linker(command: list[str], name: str) -> None:
    """Run a linker.

    Raises
    ------
    FabricError
        With the linker's first complaint, if it fails.
    """
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        why = next((line for line in lines if "error:" in line), lines[-1] if lines else "")
        tool = " ".join(command[: 4 if "ziglang" in command else 1])
        raise FabricError(
            f"Linking {name} failed: {why or f'status {run.returncode}'}.",
            f"Check that this command works: {tool} --version",
        )
