"""`fabric run`: train, evaluate, write and chat with a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..targets import DEVICE_VARIABLE
from .common import command
from .output import Output
from .run_options import run_options

if TYPE_CHECKING:
    from .engines import Engines

MODES = ("train", "evaluate", "prompts", "chat")


@command(
    "run",
    examples=[
        "fabric run nano.fabric --train train.jsonl --eval-data valid.jsonl --adapter out",
        "fabric run nano.fabric --train train.jsonl --adapter out/ --resume",
        "fabric run nano.fabric --eval valid.jsonl --adapter out/",
        r'fabric run nano.fabric --prompt "Q: Does it work?\nA:" --adapter out/',
        "fabric run nano.fabric --chat --temperature 0.7",
        "fabric run phone.fabric --train train.jsonl --adapter out --device rpc://127.0.0.1:9190",
    ],
)
@click.argument("bundle", type=click.Path(path_type=Path))
@run_options
def run_command(output: Output, bundle: Path, seed: int | None, **values: Any) -> None:
    """Train, evaluate or write text with BUNDLE.

    BUNDLE is what `fabric compile` has written, or the module.so in it. Data is JSONL with a
    text, or a prompt and a completion, or messages on each line; or plain text.
    """
    mode = _mode(values)
    engines = _engines(output, values.pop("device"), values.pop("memory_budget"))
    if mode == "train":
        from .run_training import train

        output.result(train(output, bundle, seed, values, engines))
    elif mode == "evaluate":
        from .run_training import evaluate

        output.result(evaluate(output, bundle, values, engines))
    else:
        from .run_writing import chat, write

        work = chat if values["chat"] and not values["prompts"] else write
        output.result(work(output, bundle, seed, values, engines))


def _engines(output: Output, device: str | None, budget: int | None) -> Engines:
    """Find out where to compute: here, on a device of this machine's, or on one elsewhere."""
    from ..runtime.remote.address import is_remote
    from .engines import local_engines, remote_engines

    named = device or os.environ.get(DEVICE_VARIABLE)
    if named is not None and is_remote(named):
        if budget is not None:
            raise click.UsageError("--memory-budget holds for this machine's devices only.")
        return remote_engines(output, named)
    if device is not None:
        os.environ[DEVICE_VARIABLE] = device
    return local_engines(budget)


def _mode(values: dict[str, Any]) -> str:
    """Find the one kind of work that was asked for.

    Raises
    ------
    click.UsageError
        For none, or for two that exclude each other.
    """
    asked = [mode for mode in MODES if values[mode] not in (None, False, ())]
    if asked in (["prompts"], ["chat"], ["prompts", "chat"]):
        return "write"
    # The training data may also be named in the --config file.
    if not asked and values["config"] is not None:
        return "train"
    if len(asked) != 1:
        raise click.UsageError(
            "Say what to do, with one of --train FILE, --eval FILE, --prompt TEXT and --chat."
        )
    return asked[0]
