"""What the tests of the OpenCL backend share: its functions, and modules written by hand."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.runtime.backends import load_backend
from bitfabric.targets import FabricError
from bitfabric.targets.ffi import tvm_ffi

CODES = {"int": 0, "uint": 1, "float": 2, "handle": 3}
SCALE = """
__kernel void scale(__global float* y, __global const float* x, float factor, int shift, long n) {
  long i = get_global_id(0);
  if (i < n) y[i] = x[i] * factor + shift;
}
"""
SCALE_TYPES = ["handle64", "handle64", "float32", "int32", "int64"]
GROUP = 64


def why_not() -> str | None:
    """Return why the tests can't run here, or None."""
    try:
        load_backend("opencl")
    except FabricError as error:
        return error.cause
    found = json.loads(call("bitfabric.opencl.devices"))
    return found["error"] if isinstance(found, dict) else None


def call(name: str, *arguments: Any) -> Any:
    """Call a global function."""
    return tvm_ffi.get_global_func(name)(*arguments)


def memory() -> dict[str, int]:
    return json.loads(call("bitfabric.opencl.memory", 0))


def sync() -> None:
    call("runtime.Device_StreamSync", device(), 0)


def device() -> Any:
    return tvm_ffi.Device("opencl", 0)


def empty(shape: Sequence[int], dtype: str = "float32") -> Any:
    shape = tvm_ffi.Shape(tuple(shape))
    return call("runtime.TVMTensorAllocWithScope", shape, tvm_ffi.dtype(dtype), device(), None)


def upload(array: np.ndarray, tensor: Any = None) -> Any:
    tensor = empty(array.shape, str(array.dtype)) if tensor is None else tensor
    pointer = ctypes.c_void_p(array.ctypes.data)
    call("runtime.TVMTensorCopyFromBytes", tensor, pointer, array.nbytes)
    return tensor


def download(tensor: Any) -> np.ndarray:
    array = np.empty(tuple(tensor.shape), str(tensor.dtype))
    pointer = ctypes.c_void_p(array.ctypes.data)
    call("runtime.TVMTensorCopyToBytes", tensor, pointer, array.nbytes)
    return array


def view(tensor: Any, offset: int, shape: Sequence[int], dtype: str = "float32") -> Any:
    shape = tvm_ffi.Shape(tuple(shape))
    return call("bitfabric.opencl.view", tensor, offset, shape, tvm_ffi.dtype(dtype))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def module_bytes(
    sources: dict[str, tuple[str, list[str]]],
    tags: Sequence[str] = ("blockIdx.x", "threadIdx.x"),
    form: str = "cl",
) -> bytes:
    """Return a device module as TVM writes it: each kernel's name, source and argument types."""
    data = text(form) + struct.pack("<Q", len(sources))
    for name, (_, types) in sources.items():
        data += text(name) * 2 + struct.pack("<Q", len(types))
        for kind in types:
            letters = kind.rstrip("0123456789")
            data += struct.pack("<BBH", CODES[letters], int(kind[len(letters) :]), 1)
        data += struct.pack("<Q", len(tags)) + b"".join(text(tag) for tag in tags)
        data += struct.pack("<Q", len(types)) + bytes(4 * len(types))
    code = "".join(f"// Function: {name}\n{source}" for name, (source, _) in sources.items())
    return data + text(code)


def load(data: bytes) -> Any:
    return call("ffi.Module.load_from_bytes.opencl", data)


def scale_module() -> Any:
    return load(module_bytes({"scale": (SCALE, SCALE_TYPES)}))


def scale(kernel: Any, y: Any, x: Any, factor: float, shift: int, n: int) -> None:
    kernel(y, x, factor, shift, n, -(-n // GROUP), GROUP)


def fails(function: Any, *arguments: Any) -> str:
    """Return the message of the error that a call raises."""
    with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
        function(*arguments)
    return str(caught.value)


def in_process(script: str, **variables: str) -> dict[str, Any]:
    """Run a script with these tools in a process of its own; return what it prints as JSON."""
    root = Path(__file__).parents[2]
    start = f"import json, sys; sys.path.insert(0, {str(root)!r})\n"
    # `tests` as a package would import the compiler; the runtime alone is what is tested.
    start += f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    start += "from opencl_tools import *\nload_backend('opencl')\n"
    run = subprocess.run(
        [sys.executable, "-c", start + script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])
