"""The device of this machine that records are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..targets import APIS, FabricError, Target

if TYPE_CHECKING:
    from ..compiler.tuning.records import Device


def device_here(target: Target) -> Device | None:
    """Return the device that a target's code would run on here; None where it can't.

    Raises
    ------
    FabricError
        If the target's kind of device is there but unusable.
    """
    from ..compiler.tuning.device import this_device

    api = APIS.get(target.device)
    if api is None:
        return this_device(target)
    from ..runtime.device import named_devices

    found = named_devices(target.device)
    lacking = api.shortfalls(target, found[0])
    if lacking:
        raise FabricError(
            f"{found[0]['name']} can't run the target {target.name}: it {lacking[0]}.",
            f"Tune for exactly this device: --target {api.auto}",
        )
    return this_device(target, found[0])
