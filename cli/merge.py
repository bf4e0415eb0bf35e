"""`fabric merge`: adapters into a model's weights, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import command, option
from .output import Output
from .progress import PhaseBar

if TYPE_CHECKING:
    from ..models import Checkpoint
    from ..models.merge import MergedTernary, Updates
    from .merge_quality import Quality

_DTYPES = {"f16": "F16", "f32": "F32"}


@command(
    "merge",
    examples=[
        "fabric merge nano out/ -o merged --to f16",
        "fabric merge nano out/:0.5 style.gguf:0.5 -o merged --to ternary --data valid.jsonl",
    ],
    seed_help="Seed of the text to measure on, where a model has no tokenizer.",
)
@click.argument("model")
@click.argument("adapters", metavar="ADAPTER[:WEIGHT]...", nargs=-1, required=True)
@option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True,
    help="The Hugging Face folder to write.",
)  # fmt: skip
@option(
    "--to", "form", type=click.Choice(["f16", "f32", "ternary"]), required=True,
    help="f16 and f32 hold the sum as ordinary matrices, for other programs; ternary rounds it, "
    "at a loss that is measured, and can be compiled.",
)  # fmt: skip
@option(
    "--data", type=click.Path(path_type=Path), default=None, metavar="FILE",
    help="Text to measure a ternary merge on.  [default: fabric's own 33 biomedical questions]",
)  # fmt: skip
@option(
    "--tokens", type=click.IntRange(min=16), default=1024, show_default=True,
    help="Measure on so many tokens of it at most.",
)  # fmt: skip
@option(
    "--context", type=click.IntRange(min=8), default=256, show_default=True,
    help="Tokens of a row of the text.",
)  # fmt: skip
def merge_command(
    output: Output,
    model: str,
    adapters: tuple[str, ...],
    folder: Path,
    form: str,
    data: Path | None,
    tokens: int,
    context: int,
    seed: int | None,
) -> None:
    """Merge one ADAPTER or several into MODEL's weights, as a Hugging Face folder.

    MODEL is what `fabric compile` takes. f16 and f32 are the exact sum. Rounded back to ternary it
    is another model: how far it is from the model with the adapters beside it is measured on a
    text and printed before anything is written.
    """
    from ..models import open_model
    from ..models.huggingface_writer import storable_scale, storage, write_plain, write_ternary
    from ..models.merge import MergedTernary, merged_matrix
    from ..models.whole_folder import require_new

    require_new(folder)
    checkpoint = open_model(model)
    updates = _updates(checkpoint, adapters)
    result: dict[str, Any] = {"folder": folder, "to": form}
    if form == "ternary":
        dtype = storage(checkpoint)
        merged = MergedTernary(checkpoint, updates, storable_scale(dtype))
        result |= _measured(output, merged, adapters, (data, context, tokens, seed or 0))
        with PhaseBar(output) as bar:
            write_ternary(merged, folder, dtype, bar)
    else:
        dtype = _DTYPES[form]
        with PhaseBar(output) as bar:
            write_plain(checkpoint, partial(merged_matrix, checkpoint, updates), folder, dtype, bar)
        output.say(
            f"The {form} matrices are the exact sum, rounded to {form}. What is left of a "
            "difference is that their input is no longer rounded to 8 bits."
        )
    output.say(f"[green]Done[/]: [bold]{folder}[/]")
    if form == "ternary":
        output.hint(f"Next: fabric compile {folder}")
    output.result({**result, "dtype": dtype.lower()})


def _updates(checkpoint: Checkpoint, names: Sequence[str]) -> Updates:
    """Read the adapters and refuse those that do not fit the model."""
    from ..models.merge import updates_of
    from ..runtime.adapter import read_adapter, split_weight
    from ..runtime.gguf_base import base_of_config
    from ..runtime.low_rank import adapter_shapes, tensor_name

    config = checkpoint.config.to_dict()
    found = []
    for name in names:
        path, weight = split_weight(name)
        adapter = read_adapter(path, base_of_config(config))
        adapter.require_fit(
            adapter_shapes(config, adapter.rank), "Use an adapter that was trained on this model."
        )
        factors = {
            place: (
                adapter.tensors[tensor_name(*place, "A")],
                adapter.tensors[tensor_name(*place, "B")],
            )
            for place in adapter.places
        }
        found.append((factors, adapter.scale * weight))
    return updates_of(found)


def _measured(
    output: Output,
    merged: MergedTernary,
    adapters: Sequence[str],
    text: tuple[Path | None, int, int, int],
) -> dict[str, Any]:
    """Measure a ternary merge, print what it costs, and return it."""
    from .merge_data import measuring_rows
    from .merge_quality import measure

    rows, source = measuring_rows(merged.base, *text)
    count = int((rows.labels >= 0).sum())
    output.say(f"Measuring on {count:,} tokens of {source} ...")
    quality = measure(merged.base, merged, adapters, rows)
    changed = merged.changed_share
    _report(output, quality, f"{count:,} tokens of {source}", changed)
    return {
        "tokens": count,
        "data": source,
        "changed_codes": changed,
        "perplexity": {name: value.perplexity for name, value in quality.items()},
        "divergence": {name: value.divergence for name, value in quality.items()},
    }


def _report(output: Output, quality: dict[str, Quality], text: str, changed: float) -> None:
    """Print what the merge costs."""
    table = output.table("", "perplexity", "KL, nats per token", numbers=(1, 2))
    for name, value in quality.items():
        table.add_row(name, f"{value.perplexity:.3f}", f"{max(value.divergence, 0.0):.5f}")
    output.say(f"\nOn {text}; KL from the first row:")
    output.show(table)
    merged, without = quality["merged"].divergence, quality["model without"].divergence
    kept = "nearer to" if merged < without else "[bold]no nearer[/] to"
    output.say(
        f"\nRounding back to ternary changed {changed:.2%} of the codes. The merged model is "
        f"{kept} the model with adapters than the model without them is."
    )
