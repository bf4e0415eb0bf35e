"""`fabric inspect`: what a bundle holds, for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from .common import SEED_UNUSED, command, option
from .memory_plan import draw_plan, show_picture, show_plan
from .output import Output

MIB = 2**20


@command(
    "inspect",
    examples=["fabric inspect nano.fabric", "fabric inspect nano.fabric/module.so --json"],
    seed_help=SEED_UNUSED,
)
@click.argument("bundle", type=click.Path(path_type=Path))
@option(
    "--picture",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Draw the memory over a training step, as an SVG file.",
)
def inspect_command(output: Output, bundle: Path, picture: Path | None, seed: int | None) -> None:
    """Show what BUNDLE holds: model, target, kernels, memory plan, files.

    BUNDLE is a folder that `fabric compile` has written, or the module.so in it. Every file is
    compared with its hash first; a bundle that was altered or cut short is refused.
    """
    from ..runtime.bundle import open_bundle

    opened = open_bundle(bundle, foreign=True)
    manifest = opened.manifest
    size = sum(entry["bytes"] for entry in manifest["files"].values()) / MIB
    output.say(f"[bold]{opened.path}[/]  {size:.1f} MiB, every file as it was written\n")
    _overview(output, manifest)
    _kernels(output, manifest["kernels"])
    _plan(output, manifest["plan"], manifest["model"]["config"]["num_layers"])
    _memory(output, manifest["memory"])
    if picture is not None:
        draw_plan(manifest["plan"]["training"], picture, f"{opened.path.name}, a training step")
    _files(output, manifest["files"])
    output.result({"bundle": opened.path, "size_mib": size, "manifest": manifest})


def _overview(output: Output, manifest: dict[str, Any]) -> None:
    """Print the model and the choices it was compiled with."""
    model, lora, training = manifest["model"], manifest["lora"], manifest["training"]
    config = model["config"]
    features = ", ".join(manifest["target"]["features"]) or "none beyond the baseline"
    kind = "rsLoRA" if lora["rslora"] else "LoRA"
    rows = {
        "model": f"{model['name']}, of the family {config['family']}",
        "shape": f"{config['num_layers']} layers, hidden {config['hidden_size']}, "
        f"feed-forward {config['intermediate_size']}, "
        f"{config['num_heads']} heads ({config['num_kv_heads']} for keys and values), "
        f"vocabulary {config['vocab_size']:,}",
        "target": f"{manifest['target']['name']}, using {features}",
        "weights": manifest.get("packing", "2bit"),
        "head": f"{manifest['head']}{', tied to the embedding' if config['tied_head'] else ''}",
        "training": f"rows of {training['context']} tokens, {training['micro_batch']} at once",
        "adapter": f"{kind}, rank {lora['rank']}, alpha {lora['alpha']:g}, "
        f"dropout {lora['dropout']:g}, on {', '.join(lora['modules'])}",
        "made with": ", ".join(f"{name} {number}" for name, number in manifest["tools"].items())
        + f"; schema {manifest['schema']}",
    }
    table = output.table("", "")
    for name, text in rows.items():
        table.add_row(f"[dim]{name}[/]", text)
    output.show(table)


def _kernels(output: Output, kernels: dict[str, str]) -> None:
    """Print each kind of kernel with the schedule that laid it out and how often it occurs."""
    kinds = Counter(kernels.values())
    output.say(f"\n[bold]Kernels[/]  {len(kernels)} of {len(kinds)} kinds")
    table = output.table("kernel", "schedule", "number", numbers=(2,))
    for kind, number in sorted(kinds.items()):
        kernel, _, rule = kind.partition(" <- ")
        table.add_row(kernel, rule, str(number))
    output.show(table)


def _plan(output: Output, plan: dict[str, Any], depth: int) -> None:
    """Print what is in memory in a training step, and in writing."""
    budget = f", within {plan['budget'] / MIB:,.0f} MiB" if plan["budget"] else ""
    kept = "of every layer" if plan["gradients"] == "all" else f"of one layer ({plan['gradients']})"
    output.say(
        f"\n[bold]Memory plan[/]  {plan['resident_layers']} of {depth} layers in memory, gradients "
        f"{kept}{budget}"
    )
    if plan.get("host_ends"):
        output.say("Embedding and head are read from the bundle when a step needs them.")
    if plan.get("host_inputs"):
        output.say(f"The inputs of {plan['host_inputs']} layers wait outside of the memory.")
    for work in ("training", "writing"):
        show_plan(output, plan[work])
    show_picture(output, plan["training"])


def _memory(output: Output, memory: dict[str, int]) -> None:
    """Print the storage of each function, largest first."""
    output.say("\n[bold]Functions[/]  the storage that each one plans")
    table = output.table("function", "MiB", numbers=(1,))
    for name, size in sorted(memory.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{size / MIB:.2f}")
    output.show(table)


def _files(output: Output, files: dict[str, dict[str, Any]]) -> None:
    """Print every file with its size and hash."""
    output.say("\n[bold]Files[/]")
    table = output.table("file", "bytes", "SHA-256", numbers=(1,))
    for name, entry in files.items():
        table.add_row(name, f"{entry['bytes']:,}", f"[dim]{entry['sha256']}[/]")
    output.show(table)
