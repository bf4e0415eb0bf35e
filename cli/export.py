"""`fabric export`: a model in the format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import command, option
from .export_gguf import ARCHITECTURES, TYPES, export_gguf_file
from .export_onnx import ONNX_BITS, ONNX_HEADS, export_onnx_file
from .options import seeded
from .output import Output


@command(
    "export",
    examples=[
        "fabric export nano --gguf nano.gguf",
        "fabric export ~/models/bitnet-b1.58-2B-4T --gguf model.gguf --type TQ1_0",
        "fabric export nano --onnx nano/model.onnx --adapter out/",
    ],
    seed_help="Seed of the weights of a random: model.",
)
@click.argument("model")
@option(
    "--gguf",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Write a GGUF file, for llama.cpp and its relatives.",
)
@option(
    "--type",
    "kind",
    type=click.Choice(TYPES, case_sensitive=False),
    default="TQ2_0",
    show_default=True,
    help="How the ternary matrices of a GGUF file are stored.",
)
@option(
    "--architecture",
    type=click.Choice(ARCHITECTURES),
    default=None,
    help="What a GGUF file says it holds.  [default: what llama.cpp calls such a model]",
)
@option(
    "--onnx",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Write an ONNX decoder with a key-value cache, and the tokenizer beside it.",
)
@option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="A[:WEIGHT]",
    help="Put an adapter into the ONNX file; may be given several times.",
)
@option(
    "--bits",
    type=click.Choice(ONNX_BITS),
    default="2",
    show_default=True,
    help="Bits of a ternary weight in ONNX: 2 is smallest and fastest, 4 is for older "
    "onnxruntimes, 8 for any ONNX runtime.",
)
@option(
    "--head",
    type=click.Choice(ONNX_HEADS),
    default="f16",
    show_default=True,
    help="How an ONNX file holds embedding and head.",
)
@option(
    "--i2s-layout",
    type=click.Choice(["auto", "x86", "arm"]),
    default="auto",
    show_default=True,
    help="For a .gguf MODEL with I2_S tensors: the kind of machine that wrote it.",
)
def export_command(
    output: Output,
    model: str,
    gguf: Path | None,
    kind: str,
    architecture: str | None,
    onnx: Path | None,
    i2s_layout: str,
    seed: int | None,
    **values: Any,
) -> None:
    """Write MODEL in the format of another program.

    MODEL is what `fabric compile` takes. The ternary weights stay what they are, bit for bit.
    """
    if (gguf is None) == (onnx is None):
        raise click.UsageError("Say what to write: --gguf FILE or --onnx FILE.")
    if onnx is not None:
        export_onnx_file(output, seeded(model, seed), onnx, i2s_layout, values)
        return
    assert gguf is not None
    if values["adapters"]:
        raise click.UsageError(
            "A GGUF model holds no adapter: convert it with `fabric adapter convert`."
        )
    export_gguf_file(output, seeded(model, seed), gguf, kind.upper(), architecture, i2s_layout)
