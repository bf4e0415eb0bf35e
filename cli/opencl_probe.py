"""Lists the OpenCL devices and lets each compute, in a process that a bad driver may take down.

``python -m bitfabric.cli.opencl_probe`` prints one JSON object a line as it goes, for
`checkup_opencl`: ``{"devices": [...]}``, or ``{"error", "remedy"}`` where there is no driver; then
for each device that is used ``{"index", "checks": [{"name", "error", "passed"}, ...]}``, or
``{"index", "error"}`` where it failed.
"""

from __future__ import annotations

import json
from typing import Any

from ..runtime.backends import opencl_devices
from ..runtime.self_test import check_device
from ..targets import FabricError
from ..targets.opencl_device import judge


def main() -> None:
    """Print what the module's head says."""
    try:
        devices = opencl_devices()
    except FabricError as error:
        _say(error=error.cause, remedy=error.remedy)
        return
    _say(devices=devices)
    for device in devices:
        if not judge(device).used:
            continue
        try:
            checks = check_device(device)
        except (FabricError, RuntimeError) as error:
            _say(index=device["index"], error=str(error).strip().splitlines()[0])
            continue
        told = [{"name": c.name, "error": repr(c.error), "passed": c.passed} for c in checks]
        _say(index=device["index"], checks=told)


def _say(**values: Any) -> None:
    # At once: what was said before a crash is kept.
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
