"""`fabric compile`: from a model and a target to a bundle that trains and talks."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from .common import command, option
from .options import compile_options, read_options, seeded
from .output import Output
from .progress import PhaseBar
from .targets import chosen_target
from .tuned import report_tuning, tuning_of


@command(
    "compile",
    examples=[
        "fabric compile nano -o nano.fabric",
        "fabric compile random:125M --context 128 --lora-rank 16",
        "fabric compile ~/models/bitnet-b1.58-2B-4T --lora-modules q_proj,v_proj",
        "fabric compile ggml-model-i2_s.gguf --i2s-layout x86",
        "fabric compile nano --target adreno",
        "fabric compile nano --target cpu-neon --host aarch64-linux-gnu --with-runtime",
    ],
    seed_help="Seed of the weights of a random: model.",
)
@click.argument("model")
@option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    default=None,
    help="The bundle to write.  [default: the model's name with .fabric]",
)
@compile_options
@option(
    "--host",
    default=None,
    metavar="TRIPLE",
    help="The system beside the target: aarch64-linux-android, aarch64-linux-gnu, "
    "x86_64-linux-gnu, aarch64-apple-macos.  [default: the target's own]",
)
@option(
    "--with-runtime",
    is_flag=True,
    help="Bring the runtime along: where the bundle goes, Python and numpy will do.",
)
@option(
    "--debug-dump",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FOLDER",
    help="Write the program after each phase of the compiler there.",
)
def compile_command(
    output: Output,
    model: str,
    folder: Path | None,
    target: str,
    host: str | None,
    i2s_layout: str,
    with_runtime: bool,
    debug_dump: Path | None,
    seed: int | None,
    **values: Any,
) -> None:
    """Compile MODEL for a target, with room for a LoRA adapter.

    MODEL is nano (a small BitNet that comes with fabric), random:SIZE for a model with random
    weights and a published shape (125M, 350M, 1B, 2.7B, 3.8B, 7B, 13B), the folder of a downloaded
    Hugging Face BitNet, a .gguf or .onnx file, or hf://owner/name@revision, which is downloaded
    first. The bundle can be moved to any machine of the target's kind; one for another system than
    this says in DEPLOY.md how it is run there.
    """
    from ..models import open_model

    chosen = chosen_target(target)
    checkpoint = open_model(seeded(model, seed), i2s_layout)
    # The compiler takes a second or two to import: what was mistyped is told before that.
    options = replace(read_options(values), debug_dump=debug_dump)
    from ..compiler import compile_model
    from ..compiler.platforms import for_host

    chosen = for_host(chosen, host) if host else chosen
    folder = folder or Path(f"{checkpoint.name.replace(':', '-')}.fabric")

    start = time.monotonic()
    parameters = checkpoint.config.parameters
    output.say(
        f"Compiling [bold]{checkpoint.name}[/] ({_count(parameters)} parameters) "
        f"for [bold]{chosen.name}[/]"
    )
    for note in checkpoint.notes:
        output.say(f"Note: {note}")
    tuning = tuning_of(chosen, output)
    with PhaseBar(output) as bar:
        bundle = compile_model(checkpoint, chosen, options, folder, bar, with_runtime, tuning)
    seconds = time.monotonic() - start
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 2**20

    output.say(f"[green]Done[/] in {seconds:.1f} s: [bold]{bundle}[/], {size:.1f} MiB.")
    plan = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["plan"]
    output.say(
        f"A training step takes at most {plan['training']['peak'] / 2**20:,.0f} MiB, with "
        f"{plan['resident_layers']} of {checkpoint.config.num_layers} layers in memory; "
        f"`fabric inspect {bundle}` shows the plan."
    )
    kernels = report_tuning(bundle, tuning, output)
    notes = bundle / "DEPLOY.md"
    if notes.is_file():
        output.hint(f"Next: {notes} says how to run it where it goes.")
    else:
        output.hint(f"Next: fabric run {bundle}/module.so --train data.jsonl --adapter adapter/")
    output.result(
        {
            "bundle": bundle,
            "module": bundle / "module.so",
            "notes": notes if notes.is_file() else None,
            "model": checkpoint.name,
            "target": chosen.name,
            "parameters": parameters,
            "seconds": seconds,
            "size_mib": size,
            "kernels": kernels,
            "planned_mib": plan["training"]["peak"] / 2**20,
            "resident_layers": plan["resident_layers"],
        }
    )


def _count(parameters: int) -> str:
    """Say a number of parameters as people do: 12.3 M, 2.41 B."""
    if parameters >= 10**9:
        return f"{parameters / 10**9:.2f} B"
    return f"{parameters / 10**6:.1f} M"
