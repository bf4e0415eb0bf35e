"""TVM's runtime: the library alone, its threads, the virtual machine, and arrays it can see."""

from __future__ import annotations

import os
import sys

import numpy as np

# Must stand before TVM is imported: with it, no compiler library is loaded.
os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
# TVM takes half of the processors by default, on the belief that the other half are siblings.
os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))

# tvm_ffi imports torch wherever it is installed, which costs two seconds and 200 MiB; a None in
# its place reads as "not installed" for as long as the import lasts.
_HIDE_TORCH = "torch" not in sys.modules
if _HIDE_TORCH:
    sys.modules["torch"] = None  # type: ignore[assignment]

import tvm_ffi
from tvm.runtime import Tensor, cpu, load_module
from tvm.runtime.vm import VirtualMachine

from .bundle import Bundle

if _HIDE_TORCH:
    del sys.modules["torch"]

Tree = Tensor | list["Tree"]


def open_machine(bundle: Bundle) -> VirtualMachine:
    """Load a bundle's module and start its virtual machine on the CPU."""
    return VirtualMachine(load_module(str(bundle.module_path)), cpu(0))


def tensor(array: np.ndarray) -> Tensor:
    """Return a TVM tensor over an array's own memory: C-contiguous, 64-byte aligned, no copy."""
    return tvm_ffi.from_dlpack(array)


def aligned(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Return a zeroed array whose data starts at a multiple of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
