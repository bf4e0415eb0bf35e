"""Peak memory of LoRA training: every published size, resident and streamed, planned and measured.

Run as ``python bench/memory.py [--model 125M ...] [--target cpu] [--run 125M]``: rank 8 on
all modules, one row of 128 tokens. The plan is what `fabric compile` writes into the manifest. A
measurement is a process of its own, and what counts is its resident memory with the mapped weight
files, or the device's; it must stay below the plan. Models up to the bound are compiled into
`--folder` and measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

CONTEXT, STEPS, MIB = 128, 3, 1 << 20
SIZES = ("125M", "350M", "1B", "2.7B", "3.8B", "7B", "13B")
LEAST: dict[str, Any] = {
    "packing": "1.6bit",
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
        losses.append(engine.accumulate(batch, 1.0 / batch.labels.size, step) / batch.labels.size)
        engine.update(learning_rate=1e-3, step=step, clip_norm=1.0)
    planned = bundle.manifest["plan"]["training"]["peak"] / MIB
    memory = engine.device_memory_mib or peak_memory_mib()
    return {"memory": memory, "planned": planned, "losses": losses}


def measured(size: str, way: str, target: str, folder: Path) -> dict[str, Any]:
    """Compile a size for a way, unless the folder has it, and measure it in its own process."""
    from bitfabric.cli.targets import chosen_target
    from bitfabric.compiler import CompileOptions, compile_model
    from bitfabric.models import open_model

    path = folder / f"{size}-{list(WAYS).index(way)}.fabric"
    if not (path / "manifest.json").is_file():
        options = replace(CompileOptions(context=CONTEXT), **WAYS[way])
        compile_model(open_model(f"random:{size}"), chosen_target(target), options, path)
    command = [sys.executable, __file__, "--measure", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def planned(size: str, way: str, target: str) -> float:
    """Return the planned peak of a size, MiB."""
    from bitfabric.cli.targets import chosen_target
    from bitfabric.compiler import CompileOptions
    from bitfabric.compiler.memory import predicted_footprints
    from bitfabric.compiler.plan import training_plan
    from bitfabric.models import open_model

    options = replace(CompileOptions(context=CONTEXT), **WAYS[way])
    config, chosen = open_model(f"random:{size}").config, chosen_target(target)
    found = predicted_footprints(config, chosen, options)
    return training_plan(config, chosen, options, found).peak / MIB


def main() -> None:
    """Print a line for every size and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SIZES, action="append")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("bundles"))
    parser.add_argument("--run", choices=SIZES, action="append", help="compile and measure these")
    parser.add_argument("--measure", type=Path, help="measure one bundle in this process")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return
    print(f"{'model':6} {'layers and gradients':38} {'planned MiB':>12} {'measured MiB':>13}")
    for size in arguments.model or SIZES:
        for way in WAYS:
            taken = ""
            if size in (arguments.run or ()):
                taken = f"{measured(size, way, arguments.target, arguments.folder)['memory']:,.0f}"
            peak = planned(size, way, arguments.target)
            print(f"{size:6} {way:38} {peak:12,.0f} {taken:>13}", flush=True)


if __name__ == "__main__":
    main()
