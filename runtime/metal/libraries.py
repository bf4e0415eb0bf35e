"""The libraries that Metal takes: Apple's own, and TVM's over them."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path

from ...targets import FabricError, machine
from ..library import load_runtime

KIND = "metal"
TVM = "libtvm_runtime_metal.dylib"
SYSTEM = "darwin"
"""What Python calls macOS."""
_REMEDY = "Run the bundle on a Mac with Apple silicon; here, see: fabric devices"


def library() -> Path:
    """Return TVM's library for Metal.

    Raises
    ------
    FabricError
        If this is no Mac with Apple silicon, or TVM's package has none.
    """
    if sys.platform != SYSTEM:
        raise FabricError("Metal is Apple's: this computer does not run macOS.", _REMEDY)
    if machine() != "aarch64":
        raise FabricError("This Mac has an Intel processor, and its graphics is not used.", _REMEDY)
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "lib" / TVM
        if path.is_file():
            return path
    raise FabricError(
        f"TVM's package here has no runtime for Metal: there is no {TVM}.",
        "Install it anew: pip install --force-reinstall apache-tvm==0.27.0.post1",
    )


def load() -> Path:
    """Load TVM's library for Metal, and return its path.

    Raises
    ------
    FabricError
        If it is missing, or the system has no Metal.
    """
    path = library()
    load_runtime()
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise FabricError(
            f"TVM's runtime for Metal can't be loaded: {error}.",
            "Install it anew: pip install --force-reinstall apache-tvm==0.27.0.post1",
        ) from error
    return path
