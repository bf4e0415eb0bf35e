"""The options that say how a model is compiled: for `fabric compile` and `fabric estimate`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .common import option

if TYPE_CHECKING:
    from ..compiler import CompileOptions

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


class Size(click.ParamType):
    """A number of bytes, with or without a unit: 512MiB, 1.5GiB, 2GB, 900m."""

    name = "size"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Name the value in the help."""
        return "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", value.lower())
        if found is None:
            self.fail(f"{value!r} is no size; write it as 512MiB or 1.5GiB.", param, ctx)
        return int(float(found[1]) * UNITS[found[2] or ""])


Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    option(
        "--target",
        default="cpu",
        show_default=True,
        metavar="NAME",
        help="What to compile for; `fabric targets` lists the names.",
    ),
    option(
        "--context",
        type=click.IntRange(min=8),
        default=256,
        show_default=True,
        help="Tokens of a training row.",
    ),
    option(
        "--micro-batch",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Rows that are computed at once; more need more memory.",
    ),
    option(
        "--lora-rank",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Rank of the adapter's matrices.",
    ),
    option(
        "--lora-alpha",
        type=float,
        default=None,
        help="The adapter is scaled by alpha / rank.  [default: twice the rank]",
    ),
    option(
        "--lora-modules",
        default="all",
        show_default=True,
        metavar="LIST",
        help="The BitLinears that get an adapter, such as q_proj,v_proj.",
    ),
    option(
        "--lora-dropout",
        type=click.FloatRange(0.0, 1.0, max_open=True),
        default=0.0,
        show_default=True,
        help="Share of an adapter's inputs that is dropped in training.",
    ),
    option("--rslora", is_flag=True, help="Scale the adapter by alpha / sqrt(rank) (rsLoRA)."),
    option(
        "--head",
        type=click.Choice(["int8", "f16"]),
        default="int8",
        show_default=True,
        help="How the output head is stored: int8 is smaller and faster, f16 exact.",
    ),
    option(
        "--packing",
        type=click.Choice(["2bit", "1.6bit"]),
        default="2bit",
        show_default=True,
        help="How ternary weights are stored: 1.6bit is a fifth smaller, 2bit quicker to unpack.",
    ),
    option(
        "--moments",
        type=click.Choice(["f32", "bf16", "int8"]),
        default="f32",
        show_default=True,
        help="How the optimiser's moments are stored: bf16 takes half of f32's memory, int8 a "
        "quarter.",
    ),
    option(
        "--kv-cache",
        type=click.Choice(["f32", "f16", "int8"]),
        default="f32",
        show_default=True,
        help="How keys and values of a text are stored while it is written.",
    ),
    option(
        "--memory-budget",
        type=Size(),
        default=None,
        help="Most memory that training may take, such as 1GiB: the compiler chooses what fits.",
    ),
    option(
        "--stream",
        is_flag=True,
        help="Keep two layers in memory; the next is read while one computes.",
    ),
    option(
        "--gradients",
        type=click.Choice(["all", "layer", "layer-twice"]),
        default="all",
        show_default=True,
        help="Keep those of all layers, or of one: a step is then one micro-batch, clipped by "
        "the norm of the step before, or after a second backward pass.",
    ),
    option(
        "--recompute",
        type=click.Choice(["auto", "all", "wide", "feed-forward", "none"]),
        default="auto",
        show_default=True,
        help="What a layer's backward pass computes again instead of keeping it: less makes a step "
        "faster and takes more memory.",
    ),
    option(
        "--i2s-layout",
        type=click.Choice(["auto", "x86", "arm"]),
        default="auto",
        show_default=True,
        help="For a .gguf file with I2_S tensors: the kind of machine that wrote it.",
    ),
)


def compile_options(function: Function) -> Function:
    """Give a command the options that `read_options` reads."""
    for decorate in reversed(_OPTIONS):
        function = decorate(function)
    return function


def read_options(values: dict[str, Any]) -> CompileOptions:
    """Take the compile options out of a command's `values`.

    --target and --i2s-layout, which is the model's, are left to the caller.

    Raises
    ------
    click.BadParameter
        For a module that no BitNet layer has.
    """
    # Whatever the environment says, these commands need all of TVM.
    os.environ["TVM_USE_RUNTIME_LIB"] = "0"
    from ..compiler import CompileOptions, LoraOptions

    rank = values.pop("lora_rank")
    alpha = values.pop("lora_alpha")
    return CompileOptions(
        context=values.pop("context"),
        micro_batch=values.pop("micro_batch"),
        lora=LoraOptions(
            rank=rank,
            alpha=2.0 * rank if alpha is None else alpha,
            modules=_modules(values.pop("lora_modules")),
            dropout=values.pop("lora_dropout"),
            rslora=values.pop("rslora"),
        ),
        head=values.pop("head"),
        packing=values.pop("packing"),
        moments=values.pop("moments"),
        kv_cache=values.pop("kv_cache"),
        resident_layers=0 if values.pop("stream") else None,
        gradients=values.pop("gradients"),
        recompute=values.pop("recompute"),
        memory_budget=values.pop("memory_budget"),
    )


def _modules(text: str) -> tuple[str, ...]:
    """Read a list such as "q_proj,v_proj", or "all", in the layer's own order."""
    from ..models import MODULES

    if text == "all":
        return MODULES
    wanted = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(wanted.difference(MODULES))
    if unknown or not wanted:
        raise click.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is none of a layer's modules; "
            f"they are {', '.join(MODULES)}, or all.",
            param_hint="--lora-modules",
        )
    return tuple(name for name in MODULES if name in wanted)


def seeded(model: str, seed: int | None) -> str:
    """Add --seed to the name of a random: model that does not say one itself."""
    if seed is None or not model.startswith("random:") or ":seed=" in model:
        return model
    return f"{model}:seed={seed}"
