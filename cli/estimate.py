"""`fabric estimate`: memory and time of a model on a target, before anything is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import SEED_UNUSED, command, option
from .memory_plan import draw_plan, show_picture, show_plan
from .options import compile_options, read_options, seeded
from .output import Output
from .targets import chosen_target

if TYPE_CHECKING:
    from ..compiler import CompileOptions


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
@option(
    "--picture",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Draw the memory over a step, as an SVG file.",
)
def estimate_command(
    output: Output,
    model: str,
    target: str,
    i2s_layout: str,
    inference: bool,
    picture: Path | None,
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
    plan = found.plan.to_dict()
    show_plan(output, plan)
    show_picture(output, plan)
    output.say(f"At most [bold]{found.peak_memory_mib:,.1f} MiB[/] at once.")
    changed = _chosen(options, found.options, checkpoint.config.num_layers)
    if changed and options.memory_budget is not None:
        output.say(f"To fit the budget: {changed}.")
    if picture is not None:
        draw_plan(plan, picture, f"{checkpoint.name} on {chosen.name}")
        output.say(f"Drawn: [bold]{picture}[/].")
    step = (
        "One token"
        if inference
        else f"One micro-batch of {found.options.micro_batch} x {options.context} tokens"
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
            "plan": plan,
            "resident_layers": found.options.resident_layers,
            "gradients": found.options.gradients,
            "recompute": found.options.recompute,
            "micro_batch": found.options.micro_batch,
        }
    )


def _chosen(asked: CompileOptions, found: CompileOptions, depth: int) -> str:
    """Say what a budget has changed of the options; "" where it is nothing."""
    changes = {
        f"{found.resident_layers} of {depth} layers in memory, the others read as they compute": (
            asked.resident_layers != found.resident_layers
        ),
        f"recompute {found.recompute}": found.recompute not in (asked.recompute, "none"),
        f"{found.micro_batch} rows at once": asked.micro_batch != found.micro_batch,
        f"the gradients of one layer ({found.gradients})": asked.gradients != found.gradients,
        f"an {found.head} head": asked.head != found.head,
        f"{found.packing} packing": asked.packing != found.packing,
        f"{found.moments} moments": asked.moments != found.moments,
        "embedding and head read from the bundle": asked.host_ends != found.host_ends,
        f"the inputs of {found.host_inputs} layers outside": (
            asked.host_inputs != found.host_inputs
        ),
    }
    return ", ".join(text for text, changed in changes.items() if changed)


def _duration(seconds: float) -> str:
    """Say a time with a unit that fits it."""
    if seconds < 1.0:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"
