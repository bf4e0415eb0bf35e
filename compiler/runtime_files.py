"""The runtime that a bundle can bring along: TVM's libraries, their Python files and our own.

This machine's come from what is installed here; another's from the wheels that pip downloads for
it. TVM's are 305 MiB when installed, nearly all of it the compiler, which stays behind.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from ..targets import FabricError
from .platforms import Platform

PYTHONS = ("3.11", "3.12", "3.13")
"""What another machine may run: the part of tvm_ffi that is compiled is for one version each."""
ROOT = Path(__file__).resolve().parent.parent

ABOUT = ("*.dist-info/METADATA", "*/licenses/*")
"""Says the version, for which our backends are built, and on what terms it may be passed on."""
HEADERS = {
    "apache-tvm": ("tvm/include/*", *ABOUT),
    "apache-tvm-ffi": ("tvm_ffi/include/*", *ABOUT),
}
TVM = ("tvm/lib/libtvm_runtime.*", *HEADERS["apache-tvm"])
DEVICE_LIBRARIES = {"cuda": "libtvm_runtime_cuda.so", "metal": "libtvm_runtime_metal.dylib"}
"""TVM's own libraries of kinds of devices."""
_DEVICE_PACKAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "cuda": {"nvidia-cuda-runtime": ("nvidia/cu13/lib/libcudart.so.13", *ABOUT)},
    "metal": {},
}
"""What they need besides, by the package that brings it."""
TVM_FFI = ("tvm_ffi/*.py", "tvm_ffi/core*", "tvm_ffi/lib/*", *HEADERS["apache-tvm-ffi"])
TVM_FFI_UNUSED = ("tvm_ffi/stub/*", "tvm_ffi/testing/*", "*.pyi")
TOKENIZERS = ("tokenizers/*",)


def add_runtime(platform: Platform, folder: Path, tokenizer: bool, chat: bool) -> None:
    """Fill a folder so that Python and numpy run a bundle from it, and nothing else is needed.

    Parameters
    ----------
    platform : Platform
        Where it shall run.
    folder : pathlib.Path
        The folder, which goes on ``sys.path`` there.
    tokenizer, chat : bool
        Whether the model has a tokenizer of its own, and a chat template.

    Raises
    ------
    FabricError
        If there are no wheels for the platform, they can't be downloaded, or a package is missing
        here.
    """
    if not platform.wheel_tags:
        raise FabricError(
            f"--with-runtime can't serve {platform.description}: TVM publishes no runtime for it.",
            "Compile without it; DEPLOY.md in the bundle says how to build the runtime once.",
        )
    add_own_files(folder)
    if platform.is_this_machine:
        copy_installed("apache-tvm", TVM, folder)
        copy_installed("apache-tvm-ffi", TVM_FFI, folder, TVM_FFI_UNUSED)
        if tokenizer:
            copy_installed("tokenizers", TOKENIZERS, folder)
    else:
        unpack_wheels(platform, "apache-tvm", TVM, folder)
        for python in PYTHONS:
            unpack_wheels(platform, "apache-tvm-ffi", TVM_FFI, folder, TVM_FFI_UNUSED, python)
        if tokenizer:
            unpack_wheels(platform, "tokenizers", TOKENIZERS, folder)
    # These are Python alone, the same on every system; markupsafe does without its compiled part.
    pure = ["typing_extensions", *(["jinja2", "markupsafe"] if chat else [])]
    if sys.version_info < (3, 11) and platform.is_this_machine:
        pure.append("tomli")
    for package in pure:
        copy_installed(package, (f"{package}.py", f"{package}/*.py", "*/licenses/*"), folder)


def add_device_runtime(kind: str, platform: Platform, folder: Path) -> None:
    """Add TVM's runtime for a kind of device, and what that needs, to the files of a runtime.

    Parameters
    ----------
    kind : str
        One of `DEVICE_LIBRARIES`.
    platform : Platform
        Where it shall run.
    folder : pathlib.Path
        The folder with the other files.

    Raises
    ------
    FabricError
        If they can't be downloaded, or a package is missing here.
    """
    wanted = {"apache-tvm": (f"tvm/lib/{DEVICE_LIBRARIES[kind]}",), **_DEVICE_PACKAGES[kind]}
    for package, files in wanted.items():
        if platform.is_this_machine:
            copy_installed(package, files, folder)
        else:
            unpack_wheels(platform, package, files, folder)


def add_own_files(folder: Path) -> None:
    """Copy our runtime's Python files and its backends' sources into a folder."""
    for package in ("runtime", "targets"):
        for source in sorted((ROOT / package).rglob("*")):
            if source.suffix in (".py", ".cc", ".h"):
                _copy(source, folder / "bitfabric" / source.relative_to(ROOT))


def copy_installed(
    package: str, wanted: Iterable[str], folder: Path, unwanted: Iterable[str] = ()
) -> None:
    """Copy those files of an installed package whose paths fit.

    Raises
    ------
    FabricError
        If it is not installed here, or not in the usual way.
    """
    try:
        found = distribution(package)
    except PackageNotFoundError:
        found = None
    paths = [str(path) for path in (found.files or ()) if found] if found else []
    chosen = [path for path in paths if _fits(path, wanted, unwanted)]
    if not found or not chosen:
        raise FabricError(
            f"--with-runtime needs the package {package}, which is not installed as a wheel.",
            f"Install it: pip install {package}",
        )
    for path in chosen:
        _copy(Path(str(found.locate_file(path))), folder / path)


def unpack_wheels(
    platform: Platform,
    package: str,
    wanted: Iterable[str],
    folder: Path,
    unwanted: Iterable[str] = (),
    python: str = PYTHONS[-1],
) -> None:
    """Download the wheel of a package that is installed here, for another system, and unpack it.

    Raises
    ------
    FabricError
        If it can't be downloaded.
    """
    with tempfile.TemporaryDirectory() as work:
        wheel = download(platform, package, python, Path(work))
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not name.endswith("/") and _fits(name, wanted, unwanted):
                    archive.extract(name, folder)


def download(platform: Platform, package: str, python: str, folder: Path) -> Path:
    """Download one wheel with pip, of the version that is installed here, and return its path.

    Raises
    ------
    FabricError
        If pip is missing, or finds none.
    """
    tags = [word for tag in platform.wheel_tags for word in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", *tags, "--python-version", python, "--dest", str(folder)]
    wish = f"{package}=={version(package)}"
    run = subprocess.run([*command, wish], capture_output=True, text=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if run.returncode or wheel is None:
        lines = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
        why = (lines or run.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise FabricError(
            f"{wish} for {platform.description} could not be downloaded: "
            f"{why.removeprefix('ERROR: ').rstrip('.')}.",
            "Connect to the network for --with-runtime, or compile without it.",
        )
    return wheel


def _fits(path: str, wanted: Iterable[str], unwanted: Iterable[str]) -> bool:
    if "__pycache__" in path or ".." in path:
        return False
    return any(fnmatch(path, pattern) for pattern in wanted) and not any(
        fnmatch(path, pattern) for pattern in unwanted
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
