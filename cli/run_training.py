"""The part of `fabric run` that measures losses: --train and --eval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ..runtime.checkpoint import find_checkpoint
from ..runtime.config import TrainingConfig, make_config
from ..runtime.evaluate import evaluate_file
from ..runtime.progress import open_reporter
from ..runtime.trainer import TrainingResult
from ..runtime.trainer import train as run_training
from .engines import Engines
from .output import Output
from .progress import PhaseBar


def train(
    output: Output, bundle: Path, seed: int | None, values: dict[str, Any], engines: Engines
) -> dict[str, Any]:
    """Train an adapter as the options, the --config file and the defaults say.

    Returns
    -------
    dict
        The keys that `--train --json` promises.
    """
    opened = engines.open_bundle(bundle)
    config = _config(seed, values)
    result = run_training(
        opened,
        engines.train,
        config,
        resume=values["resume"],
        reporter=open_reporter(output.stream),
    )
    _report(output, bundle, result)
    return result.to_json()


def _config(seed: int | None, values: dict[str, Any]) -> TrainingConfig:
    """Put the settings together: flags over the file over, to resume, the checkpoint's."""
    names = (field.name for field in fields(TrainingConfig))
    flags = {name: values[name] for name in names if name in values}
    flags["seed"] = seed
    if len(values["adapters"]) > 1:
        raise click.BadParameter("a training writes one adapter.", param_hint="--adapter")
    flags["adapter"] = next(iter(values["adapters"]), None)
    config = make_config(flags, values["config"])
    checkpoint = find_checkpoint(Path(config.adapter)) if values["resume"] else None
    if checkpoint is None:
        return config
    return make_config(flags, values["config"], saved=checkpoint.config)


def _report(output: Output, bundle: Path, result: TrainingResult) -> None:
    """Say what the training came to and what can be done with it."""
    output.say(
        f"Trained {result.steps} steps, {result.tokens:,} tokens at "
        f"{result.tokens_per_s:,.0f} tokens/s; {_memory(result)}"
    )
    if result.eval_loss is not None and result.eval_loss_before is not None:
        early = ", stopped early" if result.stopped_early else ""
        output.say(
            f"Validation loss {result.eval_loss_before:.3f} before, "
            f"[bold]{result.eval_loss:.3f}[/] after (best at step {result.best_step}{early})."
        )
    output.say(f"Adapter: [bold]{result.adapter}[/], with loss.svg and metrics.jsonl beside it.")
    output.hint(f'Try it: fabric run {bundle} --prompt "..." --adapter {result.adapter}')


def _memory(result: TrainingResult) -> str:
    """Say how much memory a run took, of the device first where there is one."""
    process = f"{result.peak_memory_mib:.0f} MiB of memory."
    if not result.device_memory_mib:
        return f"at most {process}"
    return f"at most {result.device_memory_mib:.0f} MiB on the device and {process}"


def evaluate(
    output: Output, bundle: Path, values: dict[str, Any], engines: Engines
) -> dict[str, Any]:
    """Measure the loss on a data file, with or without an adapter.

    Returns
    -------
    dict
        loss (nats per token), perplexity, tokens.
    """
    if len(values["adapters"]) > 1:
        raise click.BadParameter("--eval measures one adapter.", param_hint="--adapter")
    opened = engines.open_bundle(bundle)
    with PhaseBar(output) as bar:
        found = evaluate_file(
            opened,
            engines.train,
            values["evaluate"],
            adapter=next(iter(values["adapters"]), ""),
            loss_on=values["loss_on"] or "auto",
            truncate=bool(values["truncate"]),
            skip_bad=bool(values["skip_bad"]),
            progress=_counting(bar) if output.console.is_terminal else None,
        )
    output.say(
        f"Loss [bold]{found.loss:.3f}[/] nats per token, perplexity {found.perplexity:.2f}, "
        f"over {found.tokens:,} tokens of {values['evaluate']}."
    )
    return found.to_json()


def _counting(bar: PhaseBar) -> Callable[[int, int], None]:
    """Tell a bar about rows done of all rows."""
    return lambda done, total: bar("evaluating", done / total)
