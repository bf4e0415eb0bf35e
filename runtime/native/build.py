"""How a native backend is built: its sources, what it was built for, and the compiler's options.

Both the installation (``setup.py``) and the first use (`runtime.backends`) build from here, so this
file stands alone: it imports nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
KINDS = ("opencl", "vulkan", "rocm")
"""The backends that there are sources of."""
BUILT = (*KINDS, "cuda") if sys.platform == "linux" else KINDS
"""What is built: the backends, and the account of CUDA's memory, for TVM has the backend itself."""
SOURCES = {"rocm": "hip"}
"""What a backend's source and its folder are called, where not as the backend."""
PACKAGES = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}
LIBRARIES = ("tvm_runtime", "tvm_ffi")
COMPILERS = ("c++", "g++", "clang++")


class BuildError(Exception):
    """Why a backend can't be built: a cause and a remedy, each one sentence."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}\n{remedy}")
        self.cause = cause
        self.remedy = remedy


def library_name(kind: str) -> str:
    """Return the file name of a backend's library on this system."""
    return f"libbitfabric_{kind}{SUFFIX}"


def source(kind: str) -> Path:
    """Return the file that a backend is compiled from; its folder lies beside it."""
    return FOLDER / f"{SOURCES.get(kind, kind)}.cc"


def sources(kind: str) -> list[Path]:
    """Return every file that decides a backend's code, sorted: shared ones and its own."""
    files = [source(kind), *FOLDER.glob("*.h")]
    for folder in (source(kind).stem, "compat"):
        files += (FOLDER / folder).rglob("*.h")
    return sorted(files)


def package_folder(module: str) -> Path:
    """Return the folder of one of TVM's two packages, without importing it.

    Raises
    ------
    BuildError
        If it is not installed.
    """
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "include").is_dir():
            return Path(folder)
    raise BuildError(
        f"The package {PACKAGES[module]} with its C++ headers is not installed.",
        "Install it: pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1",
    )


def build_key(kind: str) -> str:
    """Return what a library must have been built for: the versions of TVM, and the sources.

    TVM's device interface is a C++ class without a stable binary form, so a library is good for
    exactly the versions that it was built against. The key is also in the library itself.
    """
    found = hashlib.sha256()
    for file in sources(kind):
        found.update(file.relative_to(FOLDER).as_posix().encode())
        found.update(file.read_bytes())
    versions = [f"{name}-{importlib.metadata.version(name)}" for name in PACKAGES.values()]
    return " ".join([*versions, found.hexdigest()[:16]])


def is_current(library: Path, kind: str) -> bool:
    """Return whether a library exists and was built from these sources for these versions."""
    try:
        return f"bitfabric build key: {build_key(kind)}.".encode() in library.read_bytes()
    except OSError:
        return False


def include_folders() -> list[str]:
    """Return the folders of headers: ours, and those of TVM's two packages."""
    return [
        str(FOLDER / "compat"),
        *(str(package_folder(module) / "include") for module in PACKAGES),
    ]


def compile_options() -> list[str]:
    """Return the options that every source is compiled with, on each system."""
    aligned = FOLDER / "compat" / "aligned_memory.h"
    return [
        "-std=c++17",
        "-include",
        str(aligned),
        *(f"-I{folder}" for folder in include_folders()),
    ]


def library_folders() -> list[str]:
    """Return the folders of the libraries that a backend is linked with."""
    return [str(package_folder(module) / "lib") for module in PACKAGES]


def link_options() -> list[str]:
    """Return the linker's options that go beyond folders and libraries."""
    # On a Mac, libraries are found by their paths rather than by their names; the runtime has
    # loaded both before, so the names are left to be found among what is loaded.
    return ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []


def compiler() -> str:
    """Return the C++ compiler: ``$CXX``, or the first that is installed.

    Raises
    ------
    BuildError
        If there is none.
    """
    for name in (os.environ.get("CXX"), *COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise BuildError(
        "No C++ compiler was found to build the backend with.",
        "Install one (apt install g++, or on a Mac xcode-select --install) and try again.",
    )


def build(kind: str, target: Path) -> None:
    """Build a backend's library into a file, whole or not at all. It takes about ten seconds.

    Raises
    ------
    BuildError
        If there is no compiler, a package is missing, or the compiler fails.
    """
    define = f'-DBITFABRIC_BUILD_KEY="{build_key(kind)}"'
    command = [compiler(), "-O2", "-fPIC", "-shared", define, *compile_options(), source(kind).name]
    if sys.platform != "darwin":
        command += [f"-L{folder}" for folder in library_folders()]
        command += [f"-l{name}" for name in LIBRARIES] + ["-ldl", "-pthread"]
    command += link_options()
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, work = tempfile.mkstemp(prefix=".new.", suffix=SUFFIX, dir=target.parent)
    os.close(handle)
    try:
        # From their own folder, so that the library does not hold the paths of this machine.
        run = subprocess.run(
            [*command, "-o", work], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        if run.returncode:
            lines = [line for line in run.stderr.splitlines() if "error" in line] or ["no message"]
            raise BuildError(
                f"The C++ compiler failed on the {kind} backend: {lines[0].strip()}",
                f"Check that this works: {command[0]} --version; it must know C++17.",
            )
        os.chmod(work, 0o755)
        os.replace(work, target)
    finally:
        Path(work).unlink(missing_ok=True)
