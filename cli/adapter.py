"""`fabric adapter`: LoRA adapters between PEFT and GGUF, and what one holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import SEED_UNUSED, command, option
from .output import Output

if TYPE_CHECKING:
    from ..runtime.gguf_base import Base
    from ..runtime.low_rank import LowRank

_BASE = option(
    "--base",
    default=None,
    metavar="MODEL",
    help="The model that the adapter is for: a bundle, a .gguf file, or what `fabric compile` "
    "takes. Needed to write GGUF, and for some GGUF adapters to be read.",
)


@click.group("adapter", context_settings={"help_option_names": ["-h", "--help"]})
def adapter_group() -> None:
    """Convert LoRA adapters between PEFT and GGUF, and look into them."""


@command(
    "convert",
    examples=[
        "fabric adapter convert out/ out.gguf --base nano.fabric",
        "fabric adapter convert out/ out.gguf --base bitnet-2b.gguf",
        "fabric adapter convert style.gguf style/",
    ],
    seed_help=SEED_UNUSED,
)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("destination", metavar="OUT", type=click.Path(path_type=Path))
@_BASE
@option(
    "--to",
    "form",
    type=click.Choice(["peft", "gguf"]),
    default=None,
    help="The format of OUT.  [default: the one that IN is not]",
)
@option(
    "--architecture",
    default=None,
    metavar="NAME",
    help="What GGUF calls the base, where --base is no .gguf file: bitnet for llama.cpp, "
    "bitnet-b1.58 for bitnet.cpp.  [default: as `fabric export` does]",
)
def convert_command(
    output: Output,
    source: Path,
    destination: Path,
    base: str | None,
    form: str | None,
    architecture: str | None,
    seed: int | None,
) -> None:
    """Convert the adapter IN between a folder of PEFT's and a GGUF file.

    Both ways are exact. GGUF needs the base: its architecture's name is written, and in models of
    the architecture llama the rows of q and k stand in another order.
    """
    from ..runtime.adapter import read_adapter
    from ..runtime.gguf_adapter import write_gguf_adapter
    from ..runtime.gguf_file import is_gguf
    from ..runtime.low_rank import AdapterError, adapter_shapes
    from ..runtime.peft_adapter import target_modules, write_peft

    _require_adapter(source)
    _require_free(source, destination)
    form = form or ("peft" if is_gguf(source) else "gguf")
    model = _read_base(base)
    adapter = read_adapter(source, model)
    if model is not None:
        shapes = adapter_shapes(model.config, adapter.rank)
        adapter.require_fit(shapes, "Name the model that the adapter was trained on with --base.")
    if form == "peft":
        layers = int(model.config["num_layers"]) if model else None
        write_peft(destination, adapter, target_modules(adapter, layers))
    elif model is None:
        raise AdapterError(
            f"{source} does not say what GGUF calls its model, nor how many heads that has.",
            "Name the model with --base: its bundle, its folder or its GGUF file.",
        )
    else:
        write_gguf_adapter(destination, adapter, _named(model, architecture))
    output.say(f"[bold]{destination}[/]: {_described(adapter)}.")
    if form == "gguf" and adapter.rslora:
        output.say("Its rsLoRA scale, alpha / sqrt(rank), is written as an alpha for alpha / rank.")
    output.result({"adapter": destination, "format": form, **_facts(adapter)})


@command(
    "show",
    examples=["fabric adapter show out/", "fabric adapter show style.gguf --json"],
    seed_help=SEED_UNUSED,
)
@click.argument("source", metavar="ADAPTER", type=click.Path(path_type=Path))
@_BASE
def show_command(output: Output, source: Path, base: str | None, seed: int | None) -> None:
    """Show what ADAPTER changes and where it comes from."""
    from ..runtime.adapter import read_adapter
    from ..runtime.gguf_file import is_gguf

    _require_adapter(source)
    adapter = read_adapter(source, _read_base(base))
    facts = _facts(adapter)
    form = "GGUF" if is_gguf(source) else "PEFT"
    output.say(f"[bold]{source}[/]  {form}, {_described(adapter)}\n")
    layers = sorted({layer for layer, _ in adapter.places})
    rows = {
        "base": adapter.base or "not said",
        "modules": ", ".join(adapter.modules),
        "layers": f"{len(layers)}, {layers[0]} to {layers[-1]}",
        "scale": f"{adapter.scale:g}",
        "dropout": f"{adapter.dropout:g}",
        **{name: _plain(value) for name, value in facts["training"].items() if value},
    }
    table = output.table("", "")
    for name, text in rows.items():
        table.add_row(f"[dim]{name.replace('_', ' ')}[/]", text)
    output.show(table)
    output.result({"adapter": source, "format": form.lower(), **facts})


for _command in (convert_command, show_command):
    adapter_group.add_command(_command)


def _require_adapter(source: Path) -> None:
    """Refuse what is no adapter; a weight means nothing here."""
    from ..runtime.adapter import split_weight

    path, weight = split_weight(str(source))
    if weight != 1.0 or path != source:
        raise click.UsageError(f"{source}: give the adapter without a weight.")


def _require_free(source: Path, destination: Path) -> None:
    """Refuse to write over anything but another adapter."""
    from ..runtime.gguf_file import is_gguf
    from ..runtime.low_rank import AdapterError
    from ..runtime.peft_adapter import is_peft

    here = destination.exists() and destination.resolve() == source.resolve()
    used = destination.exists() and not is_gguf(destination) and not is_peft(destination)
    if here or (used and (destination.is_file() or any(destination.iterdir()))):
        raise AdapterError(
            f"{destination} is {'the adapter itself' if here else 'there and no adapter'}.",
            "Name another place for the converted adapter.",
        )


def _read_base(name: str | None) -> Base | None:
    """Find out what an adapter must know of its model."""
    from ..models import open_model
    from ..runtime.bundle import read_manifest
    from ..runtime.gguf_base import base_of_config, base_of_gguf
    from ..runtime.gguf_file import is_gguf
    from ..targets.manifest import MANIFEST

    if name is None:
        return None
    path = Path(name)
    if is_gguf(path):
        return base_of_gguf(path)
    if path.name == "module.so" or (path / MANIFEST).is_file():
        return base_of_config(read_manifest(path)["model"]["config"])
    return base_of_config(open_model(name).config.to_dict())


def _named(model: Base, architecture: str | None) -> Base:
    """Give the base another name of the same kind."""
    from ..runtime.gguf_base import ARCHITECTURES, require_architecture

    if architecture is None:
        return model
    if architecture not in ARCHITECTURES:
        raise click.BadParameter(
            f"{architecture} is none of {', '.join(ARCHITECTURES)}.", param_hint="--architecture"
        )
    require_architecture(Path("The adapter"), architecture, model)
    return replace(model, architecture=architecture)


def _described(adapter: LowRank) -> str:
    kind = "rsLoRA" if adapter.rslora else "LoRA"
    return (
        f"{kind} of rank {adapter.rank}, alpha {adapter.alpha:g}, "
        f"{len(adapter.places)} matrices, {adapter.parameters:,} parameters"
    )


def _facts(adapter: LowRank) -> dict[str, Any]:
    """Give what --json tells of an adapter."""
    try:
        training = json.loads(adapter.provenance or "{}")
    except ValueError:
        training = {}
    return {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "rslora": adapter.rslora,
        "scale": adapter.scale,
        "modules": adapter.modules,
        "parameters": adapter.parameters,
        "base": adapter.base,
        "training": training if isinstance(training, dict) else {},
    }


def _plain(value: object) -> str:
    """Write a value of the training's description in a line."""
    if isinstance(value, dict):
        said = {key: item for key, item in value.items() if item is not None}
        return ", ".join(f"{key} {_plain(item)}" for key, item in said.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
