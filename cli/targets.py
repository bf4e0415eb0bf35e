"""`fabric targets`: the names that --target takes."""

from __future__ import annotations

from ..targets import host_cpu, list_targets
from .common import SEED_UNUSED, command
from .output import Output


@command(
    "targets",
    examples=["fabric targets", "fabric targets --json"],
    seed_help=SEED_UNUSED,
)
def targets_command(output: Output, seed: int | None) -> None:
    """List what a model can be compiled for."""
    here = host_cpu()
    table = output.table("name", "", "what it runs on")
    table.add_row("[bold]cpu[/]", "", f"this computer's processor: the same as {here.name}")
    for target in list_targets():
        mark = "[green]this one[/]" if target == here else ""
        table.add_row(f"[bold]{target.name}[/]", mark, target.description)
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
                    "features": sorted(target.features),
                }
                for target in list_targets()
            ],
        }
    )
