"""`fabric bench`: how fast a model trains, reads or writes, beside another program, in turns."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..targets import DEVICE_VARIABLE, FabricError
from .bench_sides import NAMED, REMOTE, Side, asked, bundle_side, program
from .common import command, option
from .options import compile_options, read_options, seeded
from .output import Output
from .progress import PhaseBar
from .targets import chosen_target

if TYPE_CHECKING:
    from ..runtime.measure import Work


@dataclass(frozen=True)
class Wish:
    """What the command line asks for, besides the model.

    Attributes
    ----------
    against : str or None
        What to compare with.
    rounds : int
        How often each side is measured.
    threads : int or None
        Of each side.
    device : str or None
        Where the bundle runs.
    """

    against: str | None
    rounds: int
    threads: int | None
    device: str | None

    @property
    def is_remote(self) -> bool:
        """Whether the device is elsewhere."""
        return self.device is not None and self.device.startswith(REMOTE)


@command(
    "bench",
    examples=[
        "fabric bench nano --train",
        "fabric bench random:1B --train --batch 1 --context 128 --against torch --json",
        "fabric bench random:125M --decode 48 --against onnxruntime --head f16",
        "fabric bench new.fabric --prefill 512 --against old.fabric -o comparison/",
        "fabric bench random:1B --target cuda --train --batch 8 --against 'torch --compile'",
        "fabric bench phone.fabric --decode 32 --device rpc://127.0.0.1:9190/pixel",
    ],
    seed_help="Seed of the weights of a random: model.",
)
@click.argument("model")
@option("--train", is_flag=True, help="Measure LoRA steps of --batch rows of --context tokens.")
@option("--prefill", type=click.IntRange(min=1), default=None, help="Measure prompts of N tokens.")
@option(
    "--decode", type=click.IntRange(min=1), default=None,
    help="Measure the writing of N tokens after --context others.",
)  # fmt: skip
@option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True,
    help="Rows of a step, or sequences.",
)  # fmt: skip
@option(
    "--against", default=None, metavar="WHAT",
    help="torch, onnxruntime, a bundle, or a program; what follows its name is for it.",
)  # fmt: skip
@option(
    "--rounds", type=click.IntRange(min=1), default=7, show_default=True,
    help="How often each side is measured, after one round that does not count.",
)  # fmt: skip
@option(
    "--threads", type=click.IntRange(min=1), default=None,
    help="Threads of each side.  [default: one for each processor]",
)  # fmt: skip
@option(
    "--device", default=None, metavar="NAME",
    help="Which device: vulkan:1, a part of its name, or one elsewhere, rpc://HOST:PORT/KEY.",
)  # fmt: skip
@option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), default=None,
    help="Write bench.json and the picture bench.svg into this folder.",
)  # fmt: skip
@compile_options
def bench_command(
    output: Output,
    model: str,
    train: bool,
    prefill: int | None,
    decode: int | None,
    batch: int,
    folder: Path | None,
    seed: int | None,
    against: str | None,
    rounds: int,
    threads: int | None,
    device: str | None,
    **values: Any,
) -> None:
    """Measure how fast MODEL trains, reads or writes, alone or beside something else.

    MODEL is what `fabric compile` takes, or a bundle. Each side is a process of its own; they take
    turns, and the medians of the rounds count. The machine's own rates are measured in between:
    they tell what fraction this is of the least time that the work can take.

    A program to compare with is started with --model NAME --config JSON --work train|prefill|decode
    --batch N --tokens N --context N --threads N --lora-rank N. It warms up by itself and prints one
    line of JSON with tokens_per_s and, if it can tell, peak_memory_mib. If it stays, each line that
    it reads asks for another; if it ends, it is started again for the next round.
    """
    from .bench_report import report

    wish = Wish(against, rounds, threads, device)
    if device is not None and not wish.is_remote:
        os.environ[DEVICE_VARIABLE] = device
    kind = _kind(train, prefill, decode, against)
    if against is not None and not is_bundle(against):
        # What is wrong with it is told before the minutes that compiling may take.
        program(against)
    with tempfile.TemporaryDirectory(prefix="fabric-bench-") as scratch, ExitStack() as stack:
        path = Path(model)
        if not is_bundle(model):
            if not _is_given("micro_batch"):
                # All rows of a step at once.
                values["micro_batch"] = batch if train else 1
            path = Path(scratch) / "model.fabric"
            _compile(output, seeded(model, seed), path, values, wish)
        from ..runtime.bundle import read_manifest
        from ..runtime.measure import Work

        manifest = read_manifest(path)
        context = manifest["training"]["context"]
        if not train or _is_given("context"):
            context = values["context"]
        work = Work(kind, batch, prefill or decode or context, context)
        _check(manifest, work, path)
        result = _measured(output, stack, (path, manifest, work), wish)
    report(output, result, folder)


def _kind(train: bool, prefill: int | None, decode: int | None, against: str | None) -> str:
    """Return the one kind of work that was asked for.

    Raises
    ------
    click.UsageError
        For none, or several.
    """
    wanted = {"train": train, "prefill": prefill, "decode": decode}
    kinds = [kind for kind, value in wanted.items() if value]
    if len(kinds) != 1:
        raise click.UsageError("Say what to measure, with one of --train, --prefill, --decode.")
    if kinds == ["train"] and against is not None and against.split()[:1] == ["onnxruntime"]:
        raise FabricError(
            "onnxruntime does not train.", "Compare --prefill or --decode with it, or use torch."
        )
    return kinds[0]


def is_bundle(path: str) -> bool:
    """Tell whether a bundle, or its module, is at a path."""
    folder = Path(path).parent if Path(path).name == "module.so" else Path(path)
    return (folder / "manifest.json").is_file()


def _is_given(name: str) -> bool:
    """Tell whether an option stands on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _compile(output: Output, model: str, path: Path, values: dict[str, Any], wish: Wish) -> None:
    """Compile the model, by the tuning records that hold where it will run."""
    from ..models import open_model

    name, context = values.pop("target"), values["context"]
    target = None if wish.is_remote else chosen_target(name)
    checkpoint = open_model(model, values.pop("i2s_layout"))
    options = read_options(values)
    values["context"] = context
    from ..compiler import compile_model
    from ..compiler.tuning.applied import Tuning
    from .tuned import report_tuning, tuning_of
    from .tuning_device import device_there

    if target is None:
        tuning = Tuning.of(*device_there(output, str(wish.device), name))
    else:
        tuning = tuning_of(target, output)
    with PhaseBar(output) as bar:
        compile_model(checkpoint, tuning.target, options, path, bar, tuning=tuning)
    report_tuning(path, tuning, output)


def _check(manifest: dict[str, Any], work: Work, path: Path) -> None:
    """Refuse rows that the bundle's steps are not made of."""
    row, each = (manifest["training"][name] for name in ("context", "micro_batch"))
    if work.kind == "train" and work.context != row:
        raise FabricError(
            f"{path} was compiled for rows of {row} tokens.",
            "Leave out --context, or give the model instead of the bundle.",
        )
    if work.kind == "train" and work.batch % each:
        raise FabricError(
            f"{path} computes {each} rows at once, of which {work.batch} is no multiple.",
            f"Ask for --batch {each}, or compile it with another --micro-batch.",
        )


def _measured(
    output: Output,
    stack: ExitStack,
    what: tuple[Path, dict[str, Any], Work],
    wish: Wish,
) -> dict[str, Any]:
    """Start the sides, let them take turns, and put the result together."""
    from .bench_energy import Meter
    from .bench_report import result
    from .bench_rounds import Calibration, take_turns

    path, manifest, work = what
    # The device of an address does not compute here: no rates and no energy of it are known.
    elsewhere = "the device is elsewhere" if wish.is_remote else None
    sides = [stack.enter_context(side) for side in _sides(path, manifest, work, wish)]
    rates = None
    if elsewhere is None:
        command = [sys.executable, "-m", "bitfabric.cli.bench_calibration", str(path)]
        rates = stack.enter_context(Side("calibration", command, _threads(wish), "rates"))
    calibration = Calibration(rates, elsewhere)
    meter = Meter(manifest["target"]["device"], elsewhere)
    with PhaseBar(output) as bar:

        def told(phase: str, share: float, left: float) -> None:
            if output.console.is_terminal:
                bar(phase + (f", {left:.0f} s left" if left else ""), share)
            else:
                bar("warm up" if phase.startswith("warm up") else "measure", share)

        measured = take_turns(sides, calibration, meter, wish.rounds, told)
    return result(manifest, work, measured, calibration, meter)


def _threads(wish: Wish) -> dict[str, str]:
    """Return the variable that says how many threads TVM's kernels take."""
    return {} if wish.threads is None else {"TVM_NUM_THREADS": str(wish.threads)}


def _sides(path: Path, manifest: dict[str, Any], work: Work, wish: Wish) -> list[Side]:
    """Return our side and the one to compare with."""
    from ..runtime.library import processors

    found = [bundle_side("fabric", path, work, wish.threads, wish.device)]
    if wish.against is None:
        return found
    if is_bundle(wish.against):
        other = Path(wish.against)
        return [*found, bundle_side(other.name, other, work, wish.threads, wish.device)]
    name, command = program(wish.against)
    command += ["--model", manifest["model"]["name"], *asked(work)]
    command += ["--config", json.dumps(manifest["model"]["config"])]
    command += ["--threads", str(wish.threads or processors())]
    command += ["--lora-rank", str(manifest["lora"]["rank"])]
    if name.split()[0] in NAMED and manifest["target"]["device"] == "cpu":
        # Like with like, also where there is a GPU.
        command += ["--device", "cpu"]
    return [*found, Side(name, command, _threads(wish))]
