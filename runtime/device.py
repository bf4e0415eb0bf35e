"""TVM's runtime library alone: its threads, the virtual machine, and the memory it works on.

The Python package `tvm` is never imported: `tvm_ffi` and ``libtvm_runtime`` are all that a compiled
module needs, in half of the memory.
"""

from __future__ import annotations

import gc
import os
from typing import Any

from ..targets import APIS, DEVICE_VARIABLE, FabricError, Limits, Target
from ..targets.device_api import is_processor
from ..targets.ffi import tvm_ffi
from .backends import OF_TVM, devices, load_backend
from .bundle import Bundle
from .library import load_runtime
from .memory_space import DeviceMemory, HostMemory, MemorySpace, Tensor

CPU = 1
"""DLPack's device type."""
PLAIN, POOLED = 1, 2
"""The virtual machine's allocators: one frees blocks, one keeps them for the next step."""


def named_devices(kind: str) -> list[dict[str, Any]]:
    """Return the devices of a kind that ``FABRIC_DEVICE`` names; all where it names none.

    It names a kind, ``opencl``, or one device by index, ``opencl:1`` or ``1``, or by a part of its
    name. Where it names no device, an API whose processors are used on request has none of them.

    Raises
    ------
    FabricError
        If there is none.
    """
    api, named = APIS[kind], os.environ.get(DEVICE_VARIABLE, "")
    of_kind, _, wish = (kind, "", "") if named == kind else named.rpartition(":")
    found = [
        device
        for device in devices(kind)
        if wish in ("", str(device["index"]))
        # A number is an index: "2" stands in the names of many devices.
        or (not wish.isdigit() and wish.lower() in device["name"].lower())
    ]
    if of_kind not in ("", kind) or not found:
        raise FabricError(
            f"There is no {kind} device named {named!r}.",
            f"Name one as {kind}:0; list them with: fabric devices",
        )
    unasked = [device for device in found if not (api.on_request and is_processor(device))]
    if not (wish or unasked):
        raise FabricError(
            f"The only {api.name} device here is {found[0]['name']}, which is the processor.",
            f"Use --target cpu, which is faster, or name it: --device {kind}:{found[0]['index']}",
        )
    return found if wish else unasked


def chosen_device(bundle: Bundle) -> int:
    """Return the index of the first named device that a bundle's code fits.

    Raises
    ------
    FabricError
        If there is none: the sentence says what the first one lacks.
    """
    target = bundle_target(bundle)
    api, found = APIS[target.device], named_devices(target.device)
    fits = [device for device in found if not api.shortfalls(target, device)]
    if fits:
        return int(fits[0]["index"])
    raise FabricError(
        f"{found[0]['name']} can't run this bundle: it {api.shortfalls(target, found[0])[0]}.",
        f"Compile it for the device: fabric compile MODEL --target {api.auto}",
    )


def bundle_target(bundle: Bundle) -> Target:
    """Return the target that a bundle was made for, as its manifest describes it."""
    found = bundle.manifest["target"]
    return Target(
        name=found["name"],
        family="cpu" if found["device"] == "cpu" else "gpu",
        description="",
        options=found["options"],
        device=found["device"],
        vector_bytes=16,
        features=frozenset(found["features"]),
        limits=Limits(**found["limits"]) if found["limits"] else None,
        host=found["host"],
    )


class Machine:
    """The virtual machine of a bundle's module, on the device that the bundle is for.

    Attributes
    ----------
    memory : MemorySpace
        Where its tensors live.
    """

    def __init__(self, bundle: Bundle) -> None:
        load_runtime()
        kind = bundle.kind
        if kind != "cpu":
            # The module holds code that only the backend can read.
            load_backend(kind)
        module = tvm_ffi.load_module(str(bundle.module_path))
        self._executable = module["vm_load_executable"]()
        if kind == "cpu":
            self.memory: MemorySpace = HostMemory()
            self._executable["vm_initialization"](CPU, 0, POOLED)
            return
        # A device is made anew for what a module needs only once nothing lives on it.
        gc.collect()
        index = chosen_device(bundle)
        limit = bundle.manifest["target"]["limits"]["max_buffer"]
        self.memory = DeviceMemory(kind, index, limit, bundle.manifest.get("branches"))
        # Our own backends keep freed memory. The host's device comes last: it has the shapes.
        allocator = POOLED if kind in OF_TVM else PLAIN
        self._executable["vm_initialization"](
            APIS[kind].device_type, index, allocator, CPU, 0, POOLED
        )

    def __getitem__(self, name: str) -> Any:
        """Return a function of the module."""
        return self.memory.guarded(self._executable[name])

    def lasting(self, name: str, *arguments: Any) -> Tensor:
        """Return the one tensor that a function gives, in memory of its own.

        The virtual machine takes it from a pool, and to this pool goes back what a recorded
        function works in, which the recording of another engine writes to at any time.
        """
        return self.memory.own(self[name](*arguments))

    def bind(self, name: str, arguments: list[Any]) -> Any:
        """Return a function of no arguments: `name` with tensors and lists of them bound."""
        self._executable["save_function"](name, f"bound_{name}", 1, *arguments)
        return self.memory.repeated(self._executable[f"bound_{name}"])

    def unbind(self, name: str) -> None:
        """Let go of what was bound to a function, whose bound form must not be called any more."""
        self._executable["save_function"](name, f"bound_{name}", 1)


__all__ = ["Machine", "bundle_target", "chosen_device", "named_devices"]
