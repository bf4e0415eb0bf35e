"""Lists the devices of an API and lets each compute, in a process that a bad driver may take down.

``python -m bitfabric.cli.device_probe KIND`` prints one JSON object a line as it goes, for
`checkup_devices`: ``{"devices": [...]}``, or ``{"error", "remedy"}`` where there is no driver; then
for each device that is used ``{"index", "checks": [{"name", "error", "passed"}, ...]}``, or
``{"index", "error"}`` where it failed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ..runtime.backends import devices
from ..runtime.memory_space import DeviceMemory
from ..runtime.opencl_self_test import opencl_kernels
from ..runtime.self_test import GROUPS, THREADS, Check, Kernel, check_device
from ..targets import APIS, FabricError
from ..targets.ffi import tvm_ffi


def main(kind: str) -> None:
    """Print what the module's head says."""
    try:
        found = devices(kind)
    except FabricError as error:
        _say(error=error.cause, remedy=error.remedy)
        return
    _say(devices=found)
    for device in found:
        if not APIS[kind].judge(device).used:
            continue
        try:
            checks = _checks(kind, device)
        except (FabricError, RuntimeError) as error:
            _say(index=device["index"], error=str(error).strip().splitlines()[0])
            continue
        told = [{"name": c.name, "error": repr(c.error), "passed": c.passed} for c in checks]
        _say(index=device["index"], checks=told)


def _checks(kind: str, device: dict[str, Any]) -> list[Check]:
    """Let a device compute."""
    index = int(device["index"])
    kernels = _kernels(kind, device)
    tvm_ffi.get_global_func("__tvm_set_device")(APIS[kind].device_type, index)
    return check_device(DeviceMemory(kind, index), kernels)


def _kernels(kind: str, device: dict[str, Any]) -> dict[str, Kernel]:
    """Return the kernels of the self-test; none where our compiler is needed and not installed."""
    if kind == "opencl":
        return opencl_kernels(bool(device["fp16"]))
    try:
        from ..compiler.cuda import has_toolkit
        from ..compiler.rocm import has_linker
        from ..compiler.self_test import self_test_kernels
    except ImportError:
        return {}
    if (kind == "cuda" and not has_toolkit()) or (kind == "rocm" and not has_linker()):
        return {}
    return self_test_kernels(APIS[kind].from_device(device), THREADS, GROUPS)


def _say(**values: Any) -> None:
    # At once: what was said before a crash is kept.
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
