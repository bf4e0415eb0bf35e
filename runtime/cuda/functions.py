"""What a native backend registers, for CUDA: memory beyond TVM's device API, and recordings.

The names are those of ``runtime/native/registration.h``, ``bitfabric.cuda.view`` and so on.
Everything runs in the default stream, in order.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from typing import Any

from ...targets.ffi import tvm_ffi
from .devices import list_devices
from .graphs import record
from .ledger import Ledger
from .libraries import KIND, loaded_ledger
from .runtime import Runtime
from .views import view

_TO_DEVICE = 1
"""cudaMemcpyHostToDevice."""


class Usage:
    """How much of a device's memory this process holds.

    The ledger knows what was asked for. The driver tells what is free for all processes; what that
    misses beyond the ledger is its own: code, stacks, graphs. Without a ledger it is all there is,
    if no other process came or went meanwhile.
    """

    def __init__(self, runtime: Runtime, ledger: Ledger | None) -> None:
        self._runtime, self._ledger = runtime, ledger
        self._before: dict[int, int] = {}
        self._peak: dict[int, int] = {}

    def open(self, index: int) -> None:
        """Take note of what is free before the first tensor."""
        if index not in self._before:
            self._before[index] = self._free(index)

    def held(self, index: int) -> dict[str, int]:
        """Return ``in_use``, ``peak``, ``reserved`` and what the ``driver`` took, bytes."""
        used = max(self._before.get(index, 0) - self._free(index), 0)
        if self._ledger is not None:
            found = self._ledger.usage(index)
            mine = found["in_use"]
            return {
                "in_use": mine,
                "peak": found["peak"],
                "reserved": used,
                "driver": max(used - mine, 0),
            }
        self._peak[index] = max(self._peak.get(index, 0), used)
        return {"in_use": used, "peak": self._peak[index], "reserved": used}

    def _free(self, index: int) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._runtime("cudaSetDevice", index)
        self._runtime("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value


def register() -> None:
    """Register the functions; TVM's library must be loaded."""
    runtime = Runtime()
    ledger = loaded_ledger()
    usage = Usage(runtime, ledger)

    def part(tensor: Any, offset: int, shape: Any, dtype: Any) -> Any:
        return view(tensor, offset, tuple(shape), dtype)

    def write(tensor: Any, offset: int, source: Any, size: int) -> None:
        # What comes from ordinary memory is copied before the call returns.
        place = ctypes.c_void_p(tensor.data_ptr() + offset)
        runtime("cudaSetDevice", tensor.device.index)
        runtime("cudaMemcpyAsync", place, source, ctypes.c_size_t(size), _TO_DEVICE, None)

    def clear(tensor: Any) -> None:
        size = ctypes.c_size_t(tensor.numel() * tensor.dtype.itemsize)
        runtime("cudaSetDevice", tensor.device.index)
        runtime("cudaMemsetAsync", ctypes.c_void_p(tensor.data_ptr()), 0, size, None)

    def recorder(index: int, branches: str = "{}") -> Callable[..., Any]:
        usage.open(index)
        needs = json.loads(branches)
        return lambda function, taken: record(runtime, index, function, taken, needs)

    functions: dict[str, Callable[..., Any]] = {
        "devices": lambda: json.dumps(list_devices()),
        "memory": lambda index: json.dumps(usage.held(index)),
        "recorder": recorder,
        "view": part,
        "write": write,
        "clear": clear,
    }
    if ledger is not None:
        functions |= {
            "budget": ledger.budget,
            "reset_peak": ledger.reset_peak,
            "refused": lambda index: ledger.usage(index)["refused"],
        }
    for name, function in functions.items():
        tvm_ffi.register_global_func(f"bitfabric.{KIND}.{name}", function, override=True)
