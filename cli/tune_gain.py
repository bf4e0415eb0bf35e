"""What a model gains by its records: training, prompts and writing, with and without, in turns."""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench_energy import Meter
from .bench_rounds import Calibration, ratio, take_turns
from .bench_sides import bundle_side
from .output import Output
from .progress import PhaseBar

if TYPE_CHECKING:
    from ..compiler import CompileOptions
    from ..compiler.tuning.applied import Tuning
    from ..models import Checkpoint

ROUNDS = 5
WRITTEN = 16
"""Tokens that are written after a prompt as long as a training row."""


def measured_gain(
    model: Checkpoint, options: CompileOptions, tuning: Tuning, device: str | None, bar: PhaseBar
) -> dict[str, Any]:
    """Compile a model with and without its records, and time both in turns.

    Parameters
    ----------
    model : Checkpoint
    options : CompileOptions
    tuning : Tuning
        The records, and what they are for.
    device : str or None
        ``rpc://…`` where that is elsewhere.
    bar : PhaseBar
        Where to say how far it is.

    Returns
    -------
    dict
        For ``"training"``, ``"prefill"`` and ``"decode"``: ``before`` and ``after``, seconds of a
        step, a prompt or a token, medians; and ``gain``, the median of their quotients.
    """
    from ..compiler import compile_model
    from ..compiler.tuning.applied import Tuning
    from ..runtime.measure import Work

    row, target = options.context, tuning.target
    works = {
        "training": (Work("train", options.micro_batch, row, row), options.micro_batch * row),
        "prefill": (Work("prefill", 1, row), row),
        "decode": (Work("decode", 1, WRITTEN, row), 1),
    }
    found = {}
    with tempfile.TemporaryDirectory(prefix="fabric-tune-") as name:
        bundles = {}
        for folder, records in (("before", Tuning(target)), ("after", tuning)):
            bar(f"compile the model {'with' if folder == 'after' else 'without'} records", 0.0)
            bundles[folder] = compile_model(
                model, target, options, Path(name) / folder, tuning=records
            )
        for index, (kind, (work, tokens)) in enumerate(works.items()):
            share = 0.4 + 0.2 * index
            bar(f"measure {kind}", share)
            with ExitStack() as stack:
                sides = [
                    stack.enter_context(bundle_side(name, path, work, device=device))
                    for name, path in bundles.items()
                ]
                meter, rates = Meter("", "not asked for"), Calibration(None)
                before, after = take_turns(sides, rates, meter, ROUNDS, lambda *_: None)
            found[kind] = {
                "before": tokens / statistics.median(before.speeds),
                "after": tokens / statistics.median(after.speeds),
                "gain": ratio(after.speeds, before.speeds)[0],
            }
    return found


def report_gain(output: Output, gain: dict[str, Any]) -> None:
    """Show what was measured."""
    table = output.table("the whole model", "before", "after", "gain", numbers=(1, 2, 3))
    names = {"training": "a training step", "prefill": "a prompt", "decode": "a written token"}
    for work, name in names.items():
        values = gain[work]
        times = (f"{1e3 * values[when]:.2f} ms" for when in ("before", "after"))
        table.add_row(name, *times, f"{values['gain']:.2f} x")
    output.say()
    output.show(table)
