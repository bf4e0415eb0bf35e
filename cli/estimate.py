"""`fabric estimate`: memory and time of a model on a target, before anything is compiled."""

from __future__ import annotations

from typing import Any

import click

from .common import SEED_UNUSED, command, option
from .options import compile_options, read_options, seeded
from .output import Output
from .targets import chosen_target


@command(
    "estimate",
    examples=[
        "fabric estimate random:13B --target cpu",
        "fabric estimate nano --inference",
        "fabric estimate random:1B --context 512 --lora-rank 16 --json",
    ],
    seed_help=SEED_UNUSED,
)
@click.argument("model")
@compile_options
@option("--inference", is_flag=True, help="Estimate writing text instead of training.")
def estimate_command(
    output: Output,
    model: str,
    target: str,
    i2s_layout: str,
    inference: bool,
    seed: int | None,
    **values: Any,
) -> None:
    """Predict the peak memory and the time of MODEL on a target.

    MODEL is what `fabric compile` takes. Nothing is compiled and no weight is read, so a model
    that is far too large for this computer can be asked about.
    """
    from ..models import open_model

    chosen = chosen_target(target)
    checkpoint = open_model(seeded(model, seed), i2s_layout)
    options = read_options(values)
    from ..compiler import estimate

    found = estimate(checkpoint.config, chosen, options, train=not inference)

    what = "writing text" if inference else f"training, rows of {options.context} tokens"
    output.say(
        f"[bold]{checkpoint.name}[/] on [bold]{chosen.name}[/], {what}: "
        f"{found.parameters / 1e6:,.1f} M parameters"
    )
    table = output.table("", "MiB", numbers=(1,))
    for name, mib in found.rows:
        table.add_row(name, f"{mib:,.1f}")
    table.add_row("[bold]peak memory[/]", f"[bold]{found.peak_memory_mib:,.1f}[/]")
    output.show(table)
    step = (
        "One token"
        if inference
        else f"One micro-batch of {options.micro_batch} x {options.context} tokens"
    )
    if found.step_seconds is None:
        output.say("How fast a device is can only be measured on it.")
    else:
        output.say(f"{step} takes about [bold]{_duration(found.step_seconds)}[/].")
    output.result(
        {
            "peak_memory_mib": found.peak_memory_mib,
            "step_seconds": found.step_seconds,
            "parameters": found.parameters,
            "rows": dict(found.rows),
        }
    )


def _duration(seconds: float) -> str:
    """Say a time with a unit that fits it."""
    if seconds < 1.0:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"
