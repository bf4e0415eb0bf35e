"""The libraries that CUDA takes: the driver's, CUDA's runtime, and TVM's over both."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

from ...targets import FabricError
from ..library import load_runtime
from .ledger import Ledger

KIND = "cuda"
DRIVER, RUNTIME, TVM = "libcuda.so.1", "libcudart.so.13", "libtvm_runtime_cuda.so"
_ledgers: list[Ledger] = []


def library() -> Path:
    """Return TVM's library for CUDA.

    Raises
    ------
    FabricError
        If its package has none, as for macOS.
    """
    path = _in_package("tvm", f"lib/{TVM}")
    if path is None:
        raise FabricError(
            f"TVM's package here has no runtime for CUDA: there is no {TVM}.",
            "Use --target vulkan:auto or --target cpu.",
        )
    return path


def load(ledger: Path | None = None) -> Path:
    """Load TVM's library for CUDA and all that it needs, and return its path.

    Parameters
    ----------
    ledger : pathlib.Path, optional
        The library that counts what TVM takes, see `ledger`.

    Raises
    ------
    FabricError
        If one is missing.
    """
    path = library()
    load_runtime()
    driver()
    # Before CUDA's own, whose functions it stands before.
    account = Ledger(ledger) if ledger is not None else None
    found = cudart()
    if account is not None:
        account.open(found)
        _ledgers.append(account)
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise FabricError(
            f"TVM's runtime for CUDA can't be loaded: {error}.",
            "Install it anew: pip install --force-reinstall apache-tvm==0.27.0.post1",
        ) from error
    return path


def loaded_ledger() -> Ledger | None:
    """Return the account of what TVM takes, where it was loaded."""
    return _ledgers[0] if _ledgers else None


def driver() -> ctypes.CDLL:
    """Return NVIDIA's driver.

    Raises
    ------
    FabricError
        If it is not installed.
    """
    try:
        return ctypes.CDLL(DRIVER, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise FabricError(
            f"NVIDIA's driver is not installed: there is no {DRIVER}.",
            "Install NVIDIA's driver, 580 or later.",
        ) from error


def cudart() -> ctypes.CDLL:
    """Return CUDA's runtime library, the system's or that of the package nvidia-cuda-runtime.

    Raises
    ------
    FabricError
        If there is neither.
    """
    packaged = _in_package("nvidia", f"cu13/lib/{RUNTIME}")
    for name in (RUNTIME, *([str(packaged)] if packaged else [])):
        try:
            return ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    raise FabricError(
        f"CUDA's runtime library is not installed: there is no {RUNTIME}.",
        "Install it: pip install 'nvidia-cuda-runtime>=13,<14'",
    )


def _in_package(package: str, path: str) -> Path | None:
    """Return a file of a Python package that need not be imported for it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    return None
