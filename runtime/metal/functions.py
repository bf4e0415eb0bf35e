"""What a native backend registers, for Metal: memory beyond TVM's device API, and recordings.

The names are those of ``runtime/native/registration.h``, ``bitfabric.metal.write`` and so on, but
for views: TVM binds whole buffers, so a part of one is a tensor of its own here, and ``copy`` keeps
the two alike. Everything runs in one command queue, in order.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from ...targets.ffi import tvm_ffi
from .devices import allocated, list_devices
from .libraries import KIND


def register() -> None:
    """Register the functions; TVM's library must be loaded."""
    from_bytes, copy_tensor, view = (
        tvm_ffi.get_global_func(f"runtime.TVMTensor{name}")
        for name in ("CopyFromBytes", "CopyFromTo", "CreateView")
    )
    peaks: dict[int, int] = {}

    def memory(index: int) -> str:
        used = allocated(index)
        peaks[index] = max(peaks.get(index, 0), used)
        return json.dumps({"in_use": used, "peak": peaks[index], "reserved": used})

    def part(tensor: Any, offset: int, shape: Any) -> Any:
        return view(tensor, shape, tensor.dtype, offset)

    def copy(source: Any, source_offset: int, target: Any, target_offset: int, shape: Any) -> None:
        copy_tensor(part(source, source_offset, shape), part(target, target_offset, shape))

    def write(tensor: Any, offset: int, source: Any, size: int) -> None:
        count = size // tensor.dtype.itemsize
        place = part(tensor, offset, tvm_ffi.Shape((count,))) if offset else tensor
        from_bytes(place, source, size)

    def clear(tensor: Any) -> None:
        zeros = np.zeros(tensor.numel() * tensor.dtype.itemsize, np.uint8)
        from_bytes(tensor, ctypes.c_void_p(zeros.ctypes.data), zeros.nbytes)

    def recorder(_index: int) -> Callable[..., Any]:
        return record

    functions: dict[str, Callable[..., Any]] = {
        "devices": lambda: json.dumps(list_devices()),
        "memory": memory,
        "recorder": recorder,
        "copy": copy,
        "write": write,
        "clear": clear,
    }
    for name, function in functions.items():
        tvm_ffi.register_global_func(f"bitfabric.{KIND}.{name}", function, override=True)


def record(function: Callable[[], Any], taken: Callable[[Any], None]) -> Callable[[bool], str]:
    """Call a function and return what calls it again: Metal has no recordings of launches.

    Parameters
    ----------
    function : callable
        Launches kernels, and gives tensors.
    taken : callable
        Is handed what the function gave, each time.

    Returns
    -------
    callable
        ``replay(profile)``. What it returns is empty: the launches are not timed one by one.
    """
    taken(function())

    def replay(profile: bool) -> str:
        taken(function())
        return "[]"

    return replay
