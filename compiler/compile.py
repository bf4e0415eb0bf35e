"""``compile_model``: a checkpoint and a target become a bundle on disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..models import Checkpoint, ModelConfig
from ..targets import Target
from .branches import branches
from .budget import within_budget
from .bundle import Progress, bundle_folder, manifest_of, seal
from .cache import keep, key_of, recall
from .deploy import Deployment
from .link import link, linker
from .memory import Footprint, footprints, predicted_footprints
from .options import CompileOptions
from .pipeline import build
from .plan import bundle_plan
from .tuning.applied import Tuning
from .weights import write_weights

BRANCHING = ("cuda",)
"""Devices whose runtime runs the launches of a kernel side by side where it can."""
TUNING = "tuning.json"
"""The file of a bundle that says what each kernel's schedule rests on."""


def compile_model(
    model: Checkpoint,
    target: Target,
    options: CompileOptions,
    output: Path,
    progress: Progress | None = None,
    with_runtime: bool = False,
    tuning: Tuning | None = None,
) -> Path:
    """Compile a model for a target and write its bundle.

    Parameters
    ----------
    model : Checkpoint
        The model.
    target : Target
        What to generate code for.
    options : CompileOptions
        Sizes and formats.
    output : pathlib.Path
        The bundle's folder; an older bundle there is replaced when the new one is whole.
    progress : callable, optional
        Called with the phase's name and the fraction done.
    with_runtime : bool
        Whether the bundle brings TVM's runtime and ours along, for its target's system.
    tuning : Tuning, optional
        The records that decide the schedules; by default those of the user and of the package.

    Returns
    -------
    pathlib.Path
        `output`.

    Raises
    ------
    FabricError
        If no choice fits the memory budget, a tensor of the model is unusable, a kernel has no
        schedule for the target, there is no linker or no runtime for it, or the disk is full.
        Nothing is left behind.
    """
    report = progress or (lambda phase, fraction: None)
    linker(target)
    options = within_budget(
        model.config, target, options, lambda of: predicted_footprints(model.config, target, of)
    )
    deployment = Deployment(target, model, with_runtime)
    with bundle_folder(output) as folder:
        deployment.gather(folder)
        tuning = tuning or Tuning.of(target)
        code = _code(model.config, target, options, folder / "module.so", report, tuning)

        def weights_done(fraction: float) -> None:
            report("pack weights", 0.65 + 0.3 * fraction)

        report("pack weights", 0.65)
        weights = write_weights(model, options.formats, folder / "weights", weights_done)
        if model.tokenizer_files:
            (folder / "tokenizer").mkdir()
            for name, content in model.tokenizer_files.items():
                (folder / "tokenizer" / name).write_bytes(content)
        account = json.dumps(code["tuning"], indent=1, sort_keys=True)
        (folder / TUNING).write_text(account, encoding="utf-8")
        deployment.describe(folder, output.name, options, weights)
        report("seal", 0.95)
        found = {name: Footprint.of(record) for name, record in code["footprints"].items()}
        memory = {name: each.planned for name, each in found.items()}
        plan = bundle_plan(model.config, target, options, found)
        manifest = manifest_of(model, target, options, weights, code["kernels"], memory, plan)
        seal(folder, manifest | {"branches": code["branches"]})
    report("done", 1.0)
    return output


def _code(
    config: ModelConfig,
    target: Target,
    options: CompileOptions,
    path: Path,
    report: Progress,
    tuning: Tuning,
) -> dict[str, Any]:
    """Write the module, from the cache where it is kept; return its kernels, plan and tuning."""
    key = key_of(config, target, options, tuning.digest)
    # Whoever asks for the IR of every phase wants the phases to run.
    record = recall(key, path) if options.debug_dump is None else None
    if record is None:
        executable, kernels, lowered = build(config, target, options, report, tuning)
        report("link", 0.6)
        link(executable, path, target)
        found = {name: asdict(each) for name, each in footprints(lowered, target).items()}
        record = {"kernels": kernels, "footprints": found, "tuning": tuning.account()}
        record["branches"] = branches(lowered) if target.device in BRANCHING else {}
        keep(key, path, record)
    return record
