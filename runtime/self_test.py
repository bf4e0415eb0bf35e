"""Small kernels with known answers, to tell whether a device and its driver compute rightly.

They try what our kernels live on: 32-bit floats with exp and rsqrt, sums over a work-group through
local memory and barriers, 8-bit dot products, and 16-bit floats where the device has them. The
answers are numpy's, in float64 or in integers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..targets.opencl_source import DOT4
from .backends import load_backend
from .ffi import tvm_ffi
from .library import load_runtime
from .memory_space import DeviceMemory

OPENCL = 4
"""DLPack's device type."""
THREADS, GROUPS = 64, 48
COUNT = THREADS * GROUPS
HANDLE = struct.pack("<BBH", 3, 64, 1)
"""The type of a buffer argument: DLPack's opaque handle."""

FLOATS = """\
__kernel void fabric_check_floats(__global const float* restrict x,
                                  __global const float* restrict y,
                                  __global float* restrict out) {
  const int i = get_group_id(0) * get_local_size(0) + get_local_id(0);
  out[i] = fma(x[i], y[i], exp(-x[i] * x[i])) * rsqrt(1.0f + y[i] * y[i]);
}
"""
SUMS = """\
__kernel void fabric_check_sums(__global const float* restrict x,
                                __global const float* restrict y,
                                __global float* restrict out) {
  __local float part[64];
  const int thread = get_local_id(0);
  const int i = get_group_id(0) * 64 + thread;
  part[thread] = x[i] * y[i];
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int gap = 32; gap > 0; gap /= 2) {
    if (thread < gap) part[thread] += part[thread + gap];
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  out[i] = part[0];
}
"""
DOTS = (
    DOT4
    + """\
__kernel void fabric_check_dots(__global const int* restrict x,
                                __global const int* restrict y,
                                __global int* restrict out) {
  const int i = get_group_id(0) * get_local_size(0) + get_local_id(0);
  out[i] = fabric_dot4(x[i], y[i], i);
}
"""
)
HALVES = """\
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
__kernel void fabric_check_halves(__global const half* restrict x,
                                  __global const half* restrict y,
                                  __global half* restrict out) {
  const int i = get_group_id(0) * get_local_size(0) + get_local_id(0);
  out[i] = x[i] * y[i] + x[i];
}
"""


@dataclass(frozen=True)
class Check:
    """The outcome of one kernel.

    Attributes
    ----------
    name : str
        What it tries.
    error : float
        The largest difference from the right answer, relative to one plus its size; inf where the
        kernel gave no number.
    tolerance : float
        What is allowed.
    """

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class _Case:
    """One kernel: `answer(x, y)` is what it gives of two arrays of COUNT elements."""

    name: str
    kernel: str
    source: str
    x: np.ndarray
    y: np.ndarray
    answer: Callable[[np.ndarray, np.ndarray], np.ndarray]
    tolerance: float


def check_device(description: Mapping[str, Any]) -> list[Check]:
    """Run the kernels on an OpenCL device and compare.

    Parameters
    ----------
    description : mapping
        Of the device: ``index`` and ``fp16`` are read.

    Raises
    ------
    FabricError
        If the backend can't be loaded or the device has no memory left.
    RuntimeError
        If the driver does not compile or run a kernel; its message says which and why.
    """
    load_runtime()
    load_backend("opencl")
    index = int(description["index"])
    tvm_ffi.get_global_func("__tvm_set_device")(OPENCL, index)
    memory = DeviceMemory("opencl", index)
    return [_run(memory, case) for case in _cases(bool(description.get("fp16")))]


def module_bytes(kernel: str, source: str, arguments: int) -> bytes:
    """Return a device module of one kernel over buffers, in the form that bundles carry.

    Parameters
    ----------
    kernel : str
        The kernel's name in the source.
    source : str
        OpenCL C.
    arguments : int
        How many buffers it takes.
    """

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    def items(values: Sequence[bytes]) -> bytes:
        return struct.pack("<Q", len(values)) + b"".join(values)

    record = [text(kernel), text(kernel), items([HANDLE] * arguments)]
    record += [items([text("blockIdx.x"), text("threadIdx.x")]), items([])]
    return text("cl") + items([b"".join(record)]) + text(f"// Function: {kernel}\n{source}")


def _cases(half: bool) -> list[_Case]:
    random = np.random.default_rng(0)
    x, y = random.uniform(-2, 2, (2, COUNT)).astype(np.float32)
    # The bytes of a word count from the lowest, as on every machine that this runs on.
    words = random.integers(-(2**31), 2**31, (2, COUNT)).astype(np.int32)
    cases = [
        _Case("32-bit floats", "fabric_check_floats", FLOATS, x, y, _floats, 1e-5),
        _Case("sums over a work-group", "fabric_check_sums", SUMS, x, y, _sums, 1e-5),
        _Case("8-bit dot products", "fabric_check_dots", DOTS, words[0], words[1], _dots, 0.0),
    ]
    if half:
        low = [values.astype(np.float16) for values in (x, y)]
        cases.append(
            _Case("16-bit floats", "fabric_check_halves", HALVES, low[0], low[1], _halves, 2e-3)
        )
    return cases


def _floats(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return (x * y + np.exp(-(x**2))) / np.sqrt(1 + y**2)


def _sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    products = x.astype(np.float64) * y.astype(np.float64)
    return products.reshape(GROUPS, THREADS).sum(1).repeat(THREADS)


def _dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    pairs = x.view(np.int8).astype(np.int64) * y.view(np.int8).astype(np.int64)
    return pairs.reshape(COUNT, 4).sum(1) + np.arange(COUNT)


def _halves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float64), y.astype(np.float64)
    return x * y + x


def _run(memory: DeviceMemory, case: _Case) -> Check:
    load = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.opencl")
    module = load(module_bytes(case.kernel, case.source, 3))
    x, y = memory.constant(case.x), memory.constant(case.y)
    out = memory.constant(np.zeros_like(case.x))
    module[case.kernel](x, y, out, GROUPS, THREADS)
    found, right = memory.read(out).astype(np.float64), case.answer(case.x, case.y)
    error = np.max(np.abs(found - right) / (1 + np.abs(right)))
    return Check(case.name, float(error) if np.isfinite(error) else float("inf"), case.tolerance)
