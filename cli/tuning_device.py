"""The device that records are about: of this machine, or one that ``rpc://…`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..targets import APIS, DeviceApi, FabricError, Target, automatic, get_target

if TYPE_CHECKING:
    from ..compiler.tuning.records import Device
    from .output import Output


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
    _unless_lacking(api, target, found[0])
    return this_device(target, found[0])


def device_there(output: Output, address: str, name: str) -> tuple[Target, Device]:
    """Return the target that a name means on a device elsewhere, and that device.

    Parameters
    ----------
    output : Output
        Where it is told what becomes of lost connections.
    address : str
        rpc://host:port/key.
    name : str
        A target's name; ``cpu`` is the processor there, ``vulkan:auto`` the device there.

    Raises
    ------
    FabricError
        If there is no such target or device, or the device can't run the target's code.
    """
    from ..compiler.tuning.device import this_device
    from ..compiler.tuning.records import Device
    from ..runtime.remote.address import parse_address
    from ..runtime.remote.kernels import describe

    api = automatic(name)
    named = None if api or name == "cpu" else get_target(name)
    kind = api.kind if api else named.device if named else "cpu"
    said = describe(parse_address(address), kind, output.aside)
    if kind == "cpu":
        best = get_target(said["target"])
        target = named or best
        if not _runs_on(target, best):
            raise FabricError(
                f"{said['name']} can't run the target {target.name}.",
                f"Tune for exactly this processor: --target {best.name}",
            )
        return target, Device(said["name"], said["detail"], said["threads"])
    found: dict[str, Any] = said["devices"][0]
    target = named or get_target(name, found)
    _unless_lacking(APIS[kind], target, found)
    device = this_device(target, found)
    assert device is not None
    return target, device


def _runs_on(target: Target, best: Target) -> bool:
    """Tell whether a processor, of which `best` is the best target, runs another target's code."""
    triples = (str(t.options.get("mtriple", "")).partition("-")[0] for t in (target, best))
    return len(set(triples)) == 1 and target.features <= best.features


def _unless_lacking(api: DeviceApi, target: Target, found: dict[str, Any]) -> None:
    """Refuse a device that can't run a target's code."""
    lacking = api.shortfalls(target, found)
    if lacking:
        raise FabricError(
            f"{found['name']} can't run the target {target.name}: it {lacking[0]}.",
            f"Tune for exactly this device: --target {api.auto}",
        )
