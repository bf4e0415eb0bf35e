"""Training an adapter: settings and data in, an adapter and its story out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..targets import FabricError
from .adapter import AdapterError, fingerprint, load_adapter, model_name
from .checkpoint import (
    Checkpoint,
    Progress,
    bundle_fingerprint,
    check_identity,
    find_checkpoint,
    set_aside,
)
from .config import TrainingConfig, make_config
from .files import only_writer
from .interrupt import TrainingInterrupted
from .memory import peak_memory_mib
from .progress import Reporter, SilentReporter
from .protocols import BundleLike, BundleT, Trains
from .recorder import Recorder
from .training_data import TrainingData, load_training_data
from .training_loop import TrainingLoop


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to.

    Parameters
    ----------
    steps, tokens : int
        Optimizer steps, and real tokens seen (padding left out).
    tokens_per_s : float
        Over the steps alone, without validations.
    train_loss : float
        Mean loss of the last ten steps.
    eval_loss_before, eval_loss : float or None
        Validation loss of the model before, and with the adapter that was kept (the best one).
    peak_memory_mib : float
        Most memory held by this process at once.
    device_memory_mib : float
        Most memory of the device held at once; 0 where the processor itself computes.
    adapter : Path
        Folder of the adapter, with metrics.jsonl and loss.svg.
    best_step : int
        Step of the adapter that was kept.
    stopped_early : bool
        Whether the validation loss stopped improving before the last step.
    """

    steps: int
    tokens: int
    tokens_per_s: float
    train_loss: float
    eval_loss_before: float | None
    eval_loss: float | None
    peak_memory_mib: float
    device_memory_mib: float
    adapter: Path
    best_step: int
    stopped_early: bool

    def to_json(self) -> dict[str, Any]:
        """Give the keys of `fabric run --train --json`."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens_per_s,
            "train_loss": self.train_loss,
            "eval_loss_before": self.eval_loss_before,
            "eval_loss": self.eval_loss,
            "peak_memory_mib": self.peak_memory_mib,
            "device_memory_mib": self.device_memory_mib,
            "adapter": str(self.adapter),
        }


def configure(
    flags: Mapping[str, Any], file: Path | None = None, *, resume: bool = False
) -> TrainingConfig:
    """Put a training's settings together; what a resumed run does not say stays as it was.

    Parameters
    ----------
    flags : mapping
        Settings given on the command line; None where one was not given.
    file : Path or None
        A TOML file of settings.
    resume : bool
        Whether the checkpoint in the adapter's folder, if there is one, gives the rest.

    Returns
    -------
    TrainingConfig

    Raises
    ------
    ConfigError, FileError, ResumeError
        Where a setting, the file or the checkpoint cannot be read.
    """
    config = make_config(flags, file)
    checkpoint = find_checkpoint(Path(config.adapter)) if resume else None
    if checkpoint is None:
        return config
    # The folder is where it is now, wherever it was when the checkpoint was written.
    return make_config(flags, file, {**checkpoint.config, "adapter": config.adapter})


def train(
    bundle: BundleT,
    open_engine: Callable[[BundleT], Trains],
    config: TrainingConfig,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train a LoRA adapter, or go on where an interrupted training was.

    Parameters
    ----------
    bundle : BundleLike
    open_engine : callable
        Makes the training engine; called after the data has been read, so that a fault in the
        data is told at once and reading it does not add to the engine's memory.
    config : TrainingConfig
        From `configure`.
    resume : bool
        Whether to go on from the checkpoint in the adapter's folder, if there is one.
    reporter : Reporter or None
        Who is told how it goes; nobody by default.

    Returns
    -------
    TrainingResult

    Raises
    ------
    ConfigError, DataError, ResumeError, FileError, DivergedError
        With everything that was saved before intact.
    TrainingInterrupted
        After Ctrl-C, with everything saved.
    """
    config.validate()
    folder = Path(config.adapter)
    told = reporter or SilentReporter()
    with only_writer(folder):
        checkpoint = find_checkpoint(folder) if resume else None
        data = load_training_data(bundle, config)
        for note in data.notes:
            told.note(note)
        identity = {**_settings_identity(bundle, config, data), **data.identity}
        identity["--init-adapter"] = _init_identity(bundle, config, checkpoint)
        if checkpoint is not None:
            check_identity(checkpoint.identity, identity, folder)
        elif set_aside(folder):
            told.note(f"An earlier checkpoint in {folder} is now checkpoint.previous.safetensors.")
        if checkpoint is not None:
            told.note(f"Going on after step {checkpoint.progress.step}.")
        recorder = Recorder(folder, config.log_dir, told)
        loop = TrainingLoop(bundle, open_engine(bundle), config, data, identity, recorder)
        title = f"{model_name(bundle)} on {Path(config.train).name}"
        try:
            progress = loop.run(checkpoint)
        except TrainingInterrupted:
            recorder.draw(title)
            raise
        recorder.draw(title)
        stopped = loop.stopped_early and progress.step < loop.total
        return _result(progress, folder, stopped, loop.engine.device_memory_mib)


def _settings_identity(
    bundle: BundleLike, config: TrainingConfig, data: TrainingData
) -> dict[str, Any]:
    """Give every setting that fixes the loss curve, by a person's name for it."""
    total = config.total_steps(data.order.steps_per_epoch)
    constant = config.scheduler == "constant" and not config.warmup_ratio
    return {
        "bundle": bundle_fingerprint(bundle),
        "--seed": config.seed,
        "--batch": config.batch,
        "--accumulate": config.accumulate,
        "--context": config.row_length(bundle.context),
        "--learning-rate": config.learning_rate,
        "--scheduler": config.scheduler,
        "--warmup-ratio": config.warmup_ratio,
        "--weight-decay": config.weight_decay,
        "--clip-norm": config.clip_norm,
        "--loss-on": config.loss_on,
        "--pack": config.pack,
        # A constant rate does not depend on where the training ends, so it may end later.
        "number of steps (--epochs, --max-steps)": None if constant else total,
    }


def _init_identity(
    bundle: BundleLike, config: TrainingConfig, checkpoint: Checkpoint | None
) -> str | None:
    """Hash the adapter that the training starts from, once it is known to fit.

    A training that goes on no longer needs it: where it is gone, the checkpoint's word is taken.
    """
    if not config.init_adapter:
        return None
    if checkpoint is not None and checkpoint.config.get("init_adapter") == config.init_adapter:
        try:
            return fingerprint(config.init_adapter)
        except FabricError:
            return checkpoint.identity.get("--init-adapter")
    start = load_adapter(config.init_adapter, bundle)
    if start.folder.resolve() == Path(config.adapter).resolve():
        raise AdapterError(
            f"--adapter {config.adapter} would write over the adapter that it starts from.",
            "Name another folder with --adapter.",
        )
    start.fitted(bundle)
    return fingerprint(config.init_adapter)


def _result(
    progress: Progress, folder: Path, stopped_early: bool, device_mib: float
) -> TrainingResult:
    recent = progress.recent_losses
    return TrainingResult(
        steps=progress.step,
        tokens=progress.tokens,
        tokens_per_s=progress.tokens / max(progress.train_seconds, 1e-9),
        train_loss=math.fsum(recent) / len(recent),
        eval_loss_before=progress.eval_loss_before,
        eval_loss=progress.best_loss,
        peak_memory_mib=round(peak_memory_mib(), 1),
        device_memory_mib=round(device_mib, 1),
        adapter=folder,
        best_step=progress.best_step or progress.step,
        stopped_early=stopped_early,
    )
