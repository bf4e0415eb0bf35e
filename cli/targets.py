"""`fabric targets`: the names that --target takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..targets import (
    APIS,
    DeviceApi,
    FabricError,
    Target,
    automatic,
    get_target,
    host_cpu,
    list_targets,
)
from .common import SEED_UNUSED, command
from .output import Output

MIB = 2**20


@command(
    "targets",
    examples=["fabric targets", "fabric targets --json"],
    seed_help=SEED_UNUSED,
)
def targets_command(output: Output, seed: int | None) -> None:
    """List what a model can be compiled for.

    Which one suits this computer's devices is told by `fabric devices`.
    """
    here = host_cpu()
    table = output.table("name", "", "family", "largest buffer", "threads", "what it runs on")
    table.add_row("[bold]cpu[/]", "", "cpu", "", "", f"this computer's processor: {here.name}")
    for target in list_targets():
        mark = "[green]this one[/]" if target == here else ""
        table.add_row(
            f"[bold]{target.name}[/]", mark, target.family, *_limits(target), target.description
        )
    for api in APIS.values():
        what = f"exactly this computer's device, through {api.name}"
        table.add_row(f"[bold]{api.auto}[/]", "", "gpu", "its own", "its own", what)
    output.show(table)
    output.say("\nUse one with: fabric compile nano --target NAME")
    output.result(
        {
            "default": "cpu",
            "host": here.name,
            "targets": [
                {
                    "name": target.name,
                    "family": target.family,
                    "description": target.description,
                    "device": target.device,
                    "host": target.host,
                    "features": sorted(target.features),
                    "limits": asdict(target.limits) if target.limits else None,
                }
                for target in list_targets()
            ],
        }
    )


def chosen_target(name: str) -> Target:
    """Return the target that --target names, asking the device for ``…:auto``.

    Parameters
    ----------
    name : str
        A target's name, ``cpu``, or ``opencl:auto`` or ``vulkan:auto``, which is the device that
        ``FABRIC_DEVICE`` names, or else the first.

    Raises
    ------
    FabricError
        If there is no such target, no such device, or the device is refused.
    """
    api = automatic(name)
    return get_target(name, None if api is None else _device(api))


def _device(api: DeviceApi) -> dict[str, Any]:
    """Return the description of the device that would run a bundle here."""
    from ..runtime.device import named_devices

    found = named_devices(api.kind)
    verdicts = [api.judge(device) for device in found]
    for device, verdict in zip(found, verdicts, strict=True):
        if verdict.used:
            return device
    raise FabricError(
        f"{found[0]['name']} can't be used: {verdicts[0].reason}",
        "Use --target cpu, or another device; list them with: fabric devices",
    )


def _limits(target: Target) -> tuple[str, str]:
    """Return the largest buffer and the threads of a work-group, for people."""
    if target.limits is None:
        return "", ""
    return f"{target.limits.max_buffer // MIB} MiB", str(target.limits.max_threads)
