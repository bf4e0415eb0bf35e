"""The kernels of `self_test` in OpenCL C, which the driver compiles: no compiler of ours is needed.

They are in the form that bundles carry, so that they pass through the same loader.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ..targets.ffi import tvm_ffi
from ..targets.opencl_source import DOT4
from .self_test import GROUPS, THREADS, Kernel

HANDLE = struct.pack("<BBH", 3, 64, 1)
"""The type of a buffer argument: DLPack's opaque handle."""
_HEAD = """\
__kernel void fabric_check_{name}(__global const {type}* restrict x,
                                  __global const {type}* restrict y,
                                  __global {type}* restrict out) {{
  const int thread = get_local_id(0);
  const int i = get_group_id(0) * get_local_size(0) + thread;
"""
_FLOATS = """\
  out[i] = fma(x[i], y[i], exp(-x[i] * x[i])) * rsqrt(1.0f + y[i] * y[i]);
}
"""
_SUMS = """\
  __local float part[64];
  part[thread] = x[i] * y[i];
  barrier(CLK_LOCAL_MEM_FENCE);
  for (int gap = 32; gap > 0; gap /= 2) {
    if (thread < gap) part[thread] += part[thread + gap];
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  out[i] = part[0];
}
"""
_DOTS = """\
  out[i] = fabric_dot4(x[i], y[i], i);
}
"""
_HALVES = """\
  out[i] = x[i] * y[i] + x[i];
}
"""
_FP16 = "#pragma OPENCL EXTENSION cl_khr_fp16 : enable\n"


def opencl_kernels(half: bool) -> dict[str, Kernel]:
    """Return the kernels by name; the one of 16-bit floats where `half` says so.

    The backend must be loaded, and the device chosen.

    Raises
    ------
    RuntimeError
        When a kernel is called, if the driver does not compile it.
    """
    sources = {
        "floats": _source("floats", "float", _FLOATS),
        "sums": _source("sums", "float", _SUMS),
        "dots": DOT4 + _source("dots", "int", _DOTS),
    }
    if half:
        sources["halves"] = _FP16 + _source("halves", "half", _HALVES)
    return {name: _kernel(f"fabric_check_{name}", source) for name, source in sources.items()}


def _source(name: str, dtype: str, body: str) -> str:
    return _HEAD.format(name=name, type=dtype) + body


def _kernel(name: str, source: str) -> Kernel:
    load = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.opencl")
    launch = load(_module_bytes(name, source, 3))[name]
    return lambda *tensors: launch(*tensors, GROUPS, THREADS)


def _module_bytes(kernel: str, source: str, arguments: int) -> bytes:
    """Return a device module of one kernel over buffers."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    def items(values: Sequence[bytes]) -> bytes:
        return struct.pack("<Q", len(values)) + b"".join(values)

    record = [text(kernel), text(kernel), items([HANDLE] * arguments)]
    record += [items([text("blockIdx.x"), text("threadIdx.x")]), items([])]
    return text("cl") + items([b"".join(record)]) + text(f"// Function: {kernel}\n{source}")
