"""TVM's runtime library alone: its threads, the virtual machine, and the memory it works on.

The Python package `tvm` is never imported: `tvm_ffi` and ``libtvm_runtime`` are all that a compiled
module needs, in half of the memory.
"""

from __future__ import annotations

import os
from typing import Any

from ..targets import FabricError
from .backends import load_backend
from .bundle import Bundle
from .ffi import tvm_ffi
from .library import load_runtime
from .memory_space import DeviceMemory, HostMemory, MemorySpace, device_error

CPU, OPENCL = 1, 4
"""DLPack's device types."""
DEVICES = {"cpu": CPU, "opencl": OPENCL}
POOLED = 2
"""The virtual machine's allocator that keeps freed blocks for the next step."""
DEVICE_VARIABLE = "FABRIC_DEVICE"


def device_index(kind: str) -> int:
    """Return which device of a kind to use, as ``FABRIC_DEVICE`` names it: ``opencl:1`` or ``1``.

    Raises
    ------
    FabricError
        If the variable names another kind or no number.
    """
    named = os.environ.get(DEVICE_VARIABLE, "")
    found, _, index = named.rpartition(":")
    if not named:
        return 0
    if found not in ("", kind) or not index.isdigit():
        raise FabricError(
            f"The device {named!r} is not one of this bundle's kind, {kind}.",
            f"Name one as {kind}:0, {kind}:1 …; list them with: fabric devices",
        )
    return int(index)


class Machine:
    """The virtual machine of a bundle's module, on the device that the bundle is for.

    Attributes
    ----------
    memory : MemorySpace
        Where its tensors live.
    """

    def __init__(self, bundle: Bundle) -> None:
        load_runtime()
        kind = bundle.manifest["target"]["device"]
        module = tvm_ffi.load_module(str(bundle.module_path))
        self._executable = module["vm_load_executable"]()
        if kind == "cpu":
            self.memory: MemorySpace = HostMemory()
            self._executable["vm_initialization"](CPU, 0, POOLED)
            return
        load_backend(kind)
        index = device_index(kind)
        self.memory = DeviceMemory(kind, index)
        # The host's device comes last: there live the shapes.
        self._executable["vm_initialization"](DEVICES[kind], index, POOLED, CPU, 0, POOLED)

    def __getitem__(self, name: str) -> Any:
        """Return a function of the module."""
        return self._executable[name]

    def bind(self, name: str, arguments: list[Any]) -> Any:
        """Return a function of no arguments: `name` with tensors and lists of them bound."""
        self._executable["save_function"](name, f"bound_{name}", 1, *arguments)
        return self._executable[f"bound_{name}"]


__all__ = ["DEVICE_VARIABLE", "Machine", "device_error", "device_index"]
