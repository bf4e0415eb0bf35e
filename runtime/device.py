"""TVM's runtime library alone: its threads, the virtual machine, and arrays that it can see.

The Python package `tvm` is never imported: `tvm_ffi` and ``libtvm_runtime`` are all that a compiled
module needs, in half of the memory.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..targets import FabricError
from .bundle import Bundle
from .ffi import tvm_ffi

Tensor: TypeAlias = "tvm_ffi.Tensor"

CPU = 1
"""DLPack's device type."""
POOLED = 2
"""The virtual machine's allocator that keeps freed blocks for the next step."""
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


class Machine:
    """The virtual machine of a bundle's module, on the CPU."""

    def __init__(self, bundle: Bundle) -> None:
        load_runtime()
        module = tvm_ffi.load_module(str(bundle.module_path))
        self._executable = module["vm_load_executable"]()
        self._executable["vm_initialization"](CPU, 0, POOLED)

    def __getitem__(self, name: str) -> Any:
        """Return a function of the module."""
        return self._executable[name]

    def bind(self, name: str, arguments: list[Any]) -> Any:
        """Return a function of no arguments: `name` with tensors and lists of them bound."""
        self._executable["save_function"](name, f"bound_{name}", 1, *arguments)
        return self._executable[f"bound_{name}"]


def tensor(array: np.ndarray) -> Tensor:
    """Return a TVM tensor over an array's own memory: C-contiguous, 64-byte aligned, no copy."""
    return tvm_ffi.from_dlpack(array)


def to_numpy(value: Tensor) -> np.ndarray:
    """Return an array over a CPU tensor's memory, no copy."""
    return np.from_dlpack(value)


def aligned(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Return a zeroed array whose data starts at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
