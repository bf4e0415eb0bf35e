"""`fabric tune`: the fastest schedule of each kernel on the device at hand, kept as records."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..targets import DEVICE_VARIABLE, FabricError, Target
from .bench_sides import REMOTE
from .common import command, option
from .options import compile_options, read_options, seeded
from .output import EXIT_INTERRUPTED, Output
from .progress import PhaseBar
from .targets import chosen_target

if TYPE_CHECKING:
    from ..compiler.tuning.records import Device
    from ..compiler.tuning.tuner import Progress, Task, Tuner

SHOWN = 0.005
"""Share of the steps' time below which a kernel is not listed unless it gained."""


class TuningInterrupted(FabricError):
    """A tuning was stopped by the person; what it found is kept."""

    exit_code = EXIT_INTERRUPTED


@command(
    "tune",
    examples=[
        "fabric tune nano",
        "fabric tune random:125M --context 128 --time 10",
        "fabric tune random:1B --target vulkan:auto --trials 1000",
        "fabric tune random:1B --resume",
        "fabric tune nano --target adreno --device rpc://127.0.0.1:9200/phone",
    ],
    seed_help="Seed of the search, and of the weights of a random: model.",
)
@click.argument("model")
@compile_options
@option(
    "--trials", type=click.IntRange(min=0), default=300, show_default=True,
    help="Candidates to measure at most, over all kernels.",
)  # fmt: skip
@option(
    "--time", "minutes", type=click.FloatRange(min=0.0), default=None,
    help="Minutes to search at most.  [default: no limit]",
)  # fmt: skip
@option(
    "--resume", is_flag=True,
    help="Go on where earlier runs stopped, also with kernels that have records.",
)  # fmt: skip
@option("--no-gain", is_flag=True, help="Do not measure what the model as a whole gains.")
@option(
    "--device", default=None, metavar="NAME",
    help="Which device: vulkan:1, a part of its name, or one elsewhere, rpc://HOST:PORT/KEY; of a "
    "tracker all devices with the key, at once.",
)  # fmt: skip
def tune_command(
    output: Output,
    model: str,
    target: str,
    i2s_layout: str,
    trials: int,
    minutes: float | None,
    resume: bool,
    no_gain: bool,
    device: str | None,
    seed: int | None,
    **values: Any,
) -> None:
    """Find the fastest schedule for each kernel of MODEL on this machine's device, or another's.

    MODEL is what `fabric compile` takes, which from then on uses what was found, for every model
    that has kernels of these shapes or near them. A search may be stopped at any time: each record
    is kept at the moment it is found. Kernels that have a record are not searched again.
    """
    from ..models import open_model

    # What was mistyped is told before TVM is imported, which takes a second or two.
    there = device if device is not None and device.startswith(REMOTE) else None
    named = None if there else chosen_target(target)
    checkpoint = open_model(seeded(model, seed), i2s_layout)
    options = read_options(values)
    from ..compiler.tuning.cost_model import require_xgboost

    require_xgboost()
    if device is not None and there is None:
        os.environ[DEVICE_VARIABLE] = device
    chosen, about = _device(output, named, there, target)
    from ..compiler.tuning.kernels import kernels_of

    with PhaseBar(output) as bar:
        bar("take the model apart", 0.0)
        kernels = kernels_of(checkpoint.config, chosen, options)
        limits = trials, math.inf if minutes is None else 60.0 * minutes
        what = kernels, chosen, about, there
        tuner = _search(output, bar, what, limits, (resume, seed or 0))
    _report(output, tuner)
    gain: dict[str, Any] = {}
    if not no_gain:
        from .tune_gain import measured_gain, report_gain

        with PhaseBar(output) as bar:
            tuning = tuner.tuning.of(chosen, about)
            gain = measured_gain(checkpoint, options, tuning, there, bar)
        report_gain(output, gain)
    output.hint("From now on `fabric compile` uses these records.")
    output.result({**_result(tuner, chosen, about), "gain": gain})


def _device(
    output: Output, target: Target | None, there: str | None, name: str
) -> tuple[Target, Device]:
    """Return the target and the device that it is tuned on, here or elsewhere.

    Raises
    ------
    FabricError
        If the target is not that device's.
    """
    from .tuning_device import device_here, device_there

    if target is None:
        assert there is not None
        return device_there(output, there, name)
    device = device_here(target)
    if device is None:
        raise FabricError(
            f"The target {target.name} is not this machine's, so nothing can be measured here.",
            "Tune where it runs, by --device rpc://HOST:PORT/KEY, or there, and bring the records.",
        )
    return target, device


def _search(
    output: Output,
    bar: PhaseBar,
    what: tuple[list[Any], Target, Device, str | None],
    limits: tuple[int, float],
    how: tuple[bool, int],
) -> Tuner:
    """Run the search, which Ctrl-C brings to an end that keeps everything."""
    from ..compiler.tuning.measure import Measurer
    from ..compiler.tuning.pool import Pool
    from ..compiler.tuning.records import user_file
    from ..compiler.tuning.tuner import Tuner
    from ..runtime.interrupt import StopRequest

    kernels, target, device, there = what
    (trials, seconds), (resume, seed) = limits, how
    measurers = [Measurer(target, device=there) for _ in range(_count(there))]
    with Pool(measurers, output.aside) as pool, StopRequest() as stop:
        tuner = Tuner(kernels, target, device, pool, resume, seed)
        for note in tuner.tuning.notes:
            output.say(f"Note: {note}")
        searched = sum(not task.skipped for task in tuner.tasks)
        output.say(
            f"{len(tuner.tasks)} kernels for [bold]{target.name}[/] on {device.title}"
            f"{f', {pool.size} of them' if pool.size > 1 else ''}; {searched} to be searched"
        )

        def weighed(title: str, share: float) -> None:
            _unless(stop.asked, tuner, user_file(target.name))
            if output.console.is_terminal:
                bar(f"measure {title}", share)

        def tried(progress: Progress) -> None:
            _unless(stop.asked, tuner, user_file(target.name))
            left = _seconds_left(progress, trials, seconds)
            if progress.improved and not output.console.is_terminal:
                output.say(f"  {_line(progress, trials)}")
            bar_share = max(progress.trials / max(trials, 1), progress.seconds / seconds)
            if output.console.is_terminal:
                bar(f"{_line(progress, trials)}, {_duration(left)} left", min(bar_share, 1.0))

        if searched and trials:
            tuner.weigh(weighed)
            tuner.run(trials, seconds, tried)
    return tuner


def _count(there: str | None) -> int:
    """Return how many devices measure at once: all of a tracker's of a key."""
    if there is None:
        return 1
    from ..runtime.remote.address import parse_address
    from ..runtime.remote.kernels import devices

    return devices(parse_address(there))


def _unless(stopped: bool, tuner: Tuner, path: Path) -> None:
    """End the tuning where that was asked for."""
    if stopped:
        raise TuningInterrupted(
            f"The tuning was stopped after {tuner.progress.trials} candidates; the records so far "
            f"are in {path}.",
            "Go on with the same command and --resume.",
        )


def _seconds_left(progress: Progress, trials: int, seconds: float) -> float:
    each = progress.seconds / max(progress.trials, 1)
    return max(min((trials - progress.trials) * each, seconds - progress.seconds), 0.0)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _line(progress: Progress, trials: int) -> str:
    """Say where a search stands: how far, the kernel at hand, and the best of it so far."""
    task = progress.task
    if task is None:
        return ""
    best = f"best {1 / task.ratio:.2f} x the default"
    return f"{progress.trials}/{trials} {task.kernel.signature.title}: {best}"


def _report(output: Output, tuner: Tuner) -> None:
    """Show each kernel's time before and after."""
    table = output.table("kernel", "share", "before", "after", "gain", "tried", numbers=range(1, 6))
    tasks = sorted(tuner.tasks, key=lambda task: -task.share)
    hidden = 0
    for task in tasks:
        if task.share < SHOWN and task.ratio == 1.0:
            hidden += 1
            continue
        before, after = _times(task)
        table.add_row(
            task.kernel.signature.title,
            f"{task.share:.1%}",
            f"{before * 1e3:.3f} ms",
            f"{after * 1e3:.3f} ms",
            f"{before / after:.2f} x",
            str(task.record.trials if task.skipped and task.record else task.search.trials),
        )
    output.show(table)
    if hidden:
        output.say(f"and {hidden} kernels of less than {SHOWN:.1%} that stay as they are")
    progress = tuner.progress
    if progress.trials:
        failed = ", ".join(f"{count} {kind}" for kind, count in sorted(progress.failures.items()))
        output.say(
            f"\n{progress.trials} candidates in {_duration(progress.seconds)}; "
            + (f"of no use were {failed}." if failed else "all of them computed the right numbers.")
        )


def _times(task: Task) -> tuple[float, float]:
    """Return seconds of a call before and after, from one run."""
    if task.record is None:
        return task.seconds, task.seconds
    return task.record.default_seconds, task.record.default_seconds * task.ratio


def _result(tuner: Tuner, target: Target, device: Device) -> dict[str, Any]:
    from ..compiler.tuning.records import user_file

    return {
        "target": target.name,
        "device": asdict(device),
        "records": user_file(target.name),
        "trials": tuner.progress.trials,
        "seconds": tuner.progress.seconds,
        "failures": tuner.progress.failures,
        "kernels": [
            {
                "kernel": task.kernel.signature.title,
                "key": task.kernel.signature.key,
                "share": task.share,
                "before_seconds": _times(task)[0],
                "after_seconds": _times(task)[1],
                "trials": task.search.trials,
                "searched": not task.skipped,
                "decisions": dict(task.record.decisions) if task.record else {},
            }
            for task in tuner.tasks
        ],
    }
