"""Peak memory of LoRA training: every published size in both packings, and against dense models.

Run as ``python bench/memory.py sizes [--run 125M] [--way resident]`` for a line for each size,
packing and way to hold the layers, planned and, of the sizes after `--run`, measured; or as
``python bench/memory.py compare`` for BitNet 1B beside a Gemma-3-1B-shaped and a Qwen3-0.6B-shaped
model in float16, compiled by the same compiler. ``python bench/memory.py budgets`` lets the
compiler choose how to keep within a budget for each size, and measures what it takes. All have rank
8 on all modules and one row of 128 tokens. `--way`, `--saving` and `--model` may be given more than
once, and leave the others out.

The plan is what `fabric compile` writes into the manifest. A measurement is a process of its own
that opens a bundle and takes steps; what counts is its resident memory with the mapped weight files
(and without what else the system has in its page cache), or the device's. Bundles are compiled into
`--folder` and kept there, unless `--forget` removes each once it is measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CONTEXT, STEPS, MIB = 128, 2, 1 << 20
"""The second step has all that the first one leaves behind: moments, and pools as they grew."""
SIZES = ("125M", "350M", "1B", "2.7B", "3.8B", "7B", "13B")
PACKINGS = ("2bit", "1.6bit")
LEAST: dict[str, Any] = {
    "moments": "int8",
    "gradients": "layer",
    "host_ends": True,
    "host_inputs": 1 << 16,
}
WAYS: dict[str, dict[str, Any]] = {
    "resident": {},
    "streamed": {"resident_layers": 0},
    "streamed, one layer's gradients": {"resident_layers": 0, "gradients": "layer"},
    "resident, the rest as small as can be": LEAST,
    "streamed, the rest as small as can be": {"resident_layers": 0, **LEAST},
}
SAVINGS: dict[str, dict[str, Any]] = {
    "f32 moments": {"recompute": "all"},
    "int8 moments": {"moments": "int8", "recompute": "all"},
    "int8 moments, one layer's gradients": {"moments": "int8", "gradients": "layer"},
    "the rest as small as can be": LEAST,
}
"""What a training may save, whatever the model; none keeps activations but the layers' inputs."""
DENSE = ("gemma3-1b", "qwen3-0.6b")
GOALS = {"gemma3-1b": (0.778, 0.80), "qwen3-0.6b": (0.656, 0.70)}
"""Of BitNet 1B: the least share of a dense model's memory that it has to do without, and the goal.
"""


BUDGETS = {"125M": (180,), "1B": (600, 300), "7B": (1700, 700), "13B": (2789, 1024, 700)}
"""MiB within which a size has to train."""


@dataclass(frozen=True)
class Case:
    """A model and what differs from the compiler's default options."""

    model: str
    changes: dict[str, Any]

    @property
    def label(self) -> str:
        """The bundle's name in a folder."""
        values = (f"{name}_{value}" for name, value in sorted(self.changes.items()))
        return "-".join((self.model, *values)).replace(".", "_")

    @property
    def options(self) -> Any:
        """What the model is compiled with."""
        from bitfabric.compiler import CompileOptions

        return replace(CompileOptions(context=CONTEXT), **self.changes)


def measure(path: Path) -> dict[str, Any]:
    """Take steps on a bundle, as its plan says; return the peak in MiB and the losses."""
    import numpy as np
    from bitfabric.runtime import Batch, open_bundle, training_engine
    from bitfabric.runtime.memory import peak_memory_mib

    bundle = open_bundle(path)
    engine = training_engine(bundle)
    engine.initialize_adapter(0)
    shape = (bundle.micro_batch, bundle.context + 1)
    row = np.random.default_rng(0).integers(0, bundle.config["vocab_size"], shape, np.int32)
    starts = np.zeros((shape[0], bundle.context), np.int32)
    batch, losses = Batch(row[:, :-1].copy(), row[:, 1:].copy(), starts), []
    for step in range(1, STEPS + 1):
        begin = time.perf_counter()
        losses.append(engine.accumulate(batch, 1.0 / batch.labels.size, step) / batch.labels.size)
        engine.update(learning_rate=1e-3, step=step, clip_norm=1.0)
        seconds = time.perf_counter() - begin
    plan = bundle.manifest["plan"]
    return {
        "memory": engine.device_memory_mib or peak_memory_mib(),
        "planned": plan["training"]["peak"] / MIB,
        "losses": losses,
        "seconds": seconds,
        "chosen": _chosen(bundle.manifest),
    }


def _chosen(manifest: dict[str, Any]) -> str:
    """Say what a bundle's compiler chose that decides its memory."""
    plan, depth = manifest["plan"], manifest["model"]["config"]["num_layers"]
    parts = [manifest["packing"], f"{manifest['head']} head", f"{manifest['moments']} moments"]
    resident = plan["resident_layers"]
    parts.append("resident" if resident == depth else f"{resident} of {depth} layers stay")
    parts += ["one layer's gradients"] if plan["gradients"] != "all" else []
    parts += ["ends outside"] if plan["host_ends"] else []
    return ", ".join(parts)


def compiled(case: Case, target: str, folder: Path) -> Path:
    """Return a case's bundle, compiled unless the folder has it: then no compiler is needed."""
    path = folder / f"{case.label}.fabric"
    if not (path / "manifest.json").is_file():
        from bitfabric.cli.targets import chosen_target
        from bitfabric.compiler import compile_model
        from bitfabric.models import open_model

        compile_model(open_model(f"random:{case.model}"), chosen_target(target), case.options, path)
    return path


def cases(savings: list[str]) -> list[tuple[str, Case]]:
    """Return the savings and cases that :func:`compare` measures, dense models first."""
    sides = [(model, {"head": "f16"}) for model in DENSE]
    sides += [("1B", {"packing": packing}) for packing in PACKINGS]
    return [(s, Case(m, {**changes, **SAVINGS[s]})) for m, changes in sides for s in savings]


def measured(case: Case, target: str, folder: Path, forget: bool) -> dict[str, Any]:
    """Compile a case, unless the folder has it, and measure it in its own process."""
    path = compiled(case, target, folder)
    command = [sys.executable, __file__, "measure", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    if forget:
        shutil.rmtree(path)
    return json.loads(run.stdout.splitlines()[-1])


def planned(case: Case, target: str) -> float:
    """Return the planned peak of a case, MiB."""
    from bitfabric.cli.targets import chosen_target
    from bitfabric.compiler.memory import predicted_footprints
    from bitfabric.compiler.plan import training_plan
    from bitfabric.models import open_model

    config, chosen = open_model(f"random:{case.model}").config, chosen_target(target)
    found = predicted_footprints(config, chosen, case.options)
    return training_plan(config, chosen, case.options, found).peak / MIB


def sizes(arguments: argparse.Namespace) -> None:
    """Print a line for every size, packing and way."""
    head = "model", "packing", "layers and gradients", "planned MiB", "measured MiB"
    print("{:6} {:7} {:32} {:>12} {:>13}".format(*head))
    for size in arguments.model or SIZES:
        for packing in PACKINGS:
            for way in arguments.way or WAYS:
                case, taken = Case(size, {"packing": packing, **WAYS[way]}), ""
                if size in (arguments.run or ()):
                    found = measured(case, arguments.target, arguments.folder, arguments.forget)
                    taken = f"{found['memory']:,.0f}"
                peak = planned(case, arguments.target)
                print(f"{size:6} {packing:7} {way:32} {peak:12,.0f} {taken:>13}", flush=True)


def budgets(arguments: argparse.Namespace) -> None:
    """Print for every size and budget what the compiler planned, and what training took."""
    head = "model", "budget", "planned MiB", "measured MiB", "s a step", "losses", "chosen"
    print("{:6} {:>6} {:>12} {:>13} {:>9} {:16} {}".format(*head))
    for size in arguments.model or BUDGETS:
        for budget in BUDGETS[size]:
            case = Case(size, {"memory_budget": budget * MIB})
            found = measured(case, arguments.target, arguments.folder, arguments.forget)
            losses = " to ".join(f"{loss:.4f}" for loss in found["losses"])
            print(
                f"{size:6} {budget:6,} {found['planned']:12,.1f} {found['memory']:13,.1f} "
                f"{found['seconds']:9.3f} {losses:16} {found['chosen']}",
                flush=True,
            )


def compare(arguments: argparse.Namespace) -> None:
    """Print the dense models' memory, then BitNet's and by how much it is less.

    Against a dense model with the same savings, and, in brackets, with the first of them.
    """
    target, folder, forget = arguments.target, arguments.folder, arguments.forget
    print(f"{'model':10} {'weights':8} {'training':36} {'planned MiB':>11} {'measured MiB':>12}")
    memory: dict[tuple[str, str, str], float] = {}
    savings = arguments.saving or list(SAVINGS)
    for saving, case in cases(savings):
        weights = str(case.changes.get("packing", "f16"))
        found = measured(case, target, folder, forget)
        memory[case.model, weights, saving] = found["memory"]
        figures = f"{found['planned']:11,.0f} {found['memory']:12,.0f}"
        print(f"{case.model:10} {weights:8} {saving:36} {figures}", flush=True)
    print(f"\nBitNet 1B takes less than, by:\n{'':48} " + " ".join(f"{m:>18}" for m in DENSE))
    for packing, saving in itertools.product(PACKINGS, savings):
        ours, shares = memory["1B", packing, saving], []
        for model in DENSE:
            alike, plain = (1 - ours / memory[model, "f16", s] for s in (saving, savings[0]))
            shares.append(f"{alike:8.1%} ({plain:6.1%})")
        print(f"1B {packing:8} {saving:36} " + " ".join(f"{share:>18}" for share in shares))
    least = (f"{low:.1%}, goal {goal:.0%}" for low, goal in GOALS.values())
    print(f"{'at least':48} " + " ".join(f"{text:>18}" for text in least))


def main() -> None:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, does in (("sizes", sizes), ("compare", compare), ("budgets", budgets)):
        command = commands.add_parser(name)
        command.set_defaults(does=does)
        command.add_argument("--target", default="cpu")
        command.add_argument("--folder", type=Path, default=Path("bundles"))
        command.add_argument("--forget", action="store_true", help="keep no bundle")
        if name == "budgets":
            command.add_argument("--model", choices=BUDGETS, action="append")
        elif name == "sizes":
            command.add_argument("--model", choices=SIZES, action="append")
            command.add_argument("--run", choices=SIZES, action="append", help="measure these")
            command.add_argument("--way", choices=WAYS, action="append")
        else:
            command.add_argument("--saving", choices=SAVINGS, action="append")
    command = commands.add_parser("measure", help="measure one bundle in this process")
    command.add_argument("path", type=Path)
    command.set_defaults(does=lambda of: print(json.dumps(measure(of.path))))
    arguments = parser.parse_args()
    arguments.does(arguments)


if __name__ == "__main__":
    main()
