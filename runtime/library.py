"""TVM's runtime library: found in the wheel without importing the package, and loaded once."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

from ..targets import FabricError

LIBRARY = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_runtime() -> None:
    """Load TVM's runtime library, once, with a thread for every processor.

    Raises
    ------
    FabricError
        If the package apache-tvm is not installed.
    """
    # TVM takes half of the processors by default, on the belief that the others are siblings.
    os.environ.setdefault("TVM_NUM_THREADS", str(processors()))
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "lib" / LIBRARY.get(sys.platform, "libtvm_runtime.so")
        if path.is_file():
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            return
    raise FabricError(
        "TVM's runtime library is not installed.",
        "Install it: pip install apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post1",
    )
