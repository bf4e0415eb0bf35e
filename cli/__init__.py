"""The command `fabric`: one file per command; each parses, calls one function and prints."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click

from .adapter import adapter_group
from .bench import bench_command
from .compile import compile_command
from .device import device_group
from .devices import devices_command
from .doctor import doctor_command
from .estimate import estimate_command
from .export import export_command
from .inspect import inspect_command
from .merge import merge_command
from .models import models_command
from .quickstart import quickstart_command
from .records import records_group
from .run import run_command
from .targets import targets_command
from .tune import tune_command

__all__ = ["main"]


def _version() -> str:
    """The installed version, or "unknown" when the sources run without being installed."""
    try:
        return version("bitfabric")
    except PackageNotFoundError:
        return "unknown"


class InOrder(click.Group):
    """Lists the commands in the order a newcomer meets them, not by the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order they were added."""
        return list(self.commands)


@click.group(
    cls=InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="New here? Run `fabric quickstart`: it does everything once, in a few minutes, offline.",
)
@click.version_option(_version(), prog_name="fabric")
def main() -> None:
    """Fine-tune and run BitNet b1.58 models on the computer you own.

    A model is compiled once for a target; what comes out is a folder that trains LoRA adapters
    and writes text, with a runtime small enough for small machines.
    """


for _command in (
    quickstart_command,
    compile_command,
    run_command,
    adapter_group,
    merge_command,
    export_command,
    estimate_command,
    bench_command,
    tune_command,
    records_group,
    inspect_command,
    models_command,
    targets_command,
    devices_command,
    device_group,
    doctor_command,
):
    main.add_command(_command)
