"""The whole state of a training in one file, and when a run may go on from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..targets import FabricError
from .files import plain_json
from .protocols import BundleLike, Tensors
from .tensorfile import damaged, read_metadata, read_tensors, write_tensors

CHECKPOINT_FILE = "checkpoint.safetensors"
_STATE = ("adapter", "moment1", "moment2")
_KEY = "bitfabric.checkpoint"
_VERSION = 1


class ResumeError(FabricError):
    """A checkpoint cannot be continued with these settings."""


@dataclass
class Progress:
    """How far a training is; with the engine's state and the settings, all that the rest needs.

    The order of the data, the learning rate and dropout follow from the seed and `step`.

    Parameters
    ----------
    step : int
        Optimizer steps done.
    tokens : int
        Real tokens seen.
    train_seconds : float
        Time spent in optimizer steps.
    evaluated_step : int
        Step of the last validation, -1 before the first.
    eval_loss_before, eval_loss : float or None
        The validation loss before the first step, and the last one.
    best_loss : float or None
        The lowest validation loss, which is that of the adapter kept.
    best_step : int
        Its step.
    bad_evaluations : int
        Validations since then.
    recent_losses : list of float
        Training losses of the last steps, oldest first.
    """

    step: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    evaluated_step: int = -1
    eval_loss_before: float | None = None
    eval_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    bad_evaluations: int = 0
    recent_losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's description, without its arrays.

    Parameters
    ----------
    progress : Progress
    config : dict
        The settings of the run (`TrainingConfig.to_dict`).
    identity : dict
        Everything that fixes the loss curve, by the name a person knows it by (`check_identity`).
    """

    progress: Progress
    config: dict[str, Any]
    identity: dict[str, Any]


def save_checkpoint(folder: Path, state: Tensors, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of `folder` atomically.

    Parameters
    ----------
    folder : Path
        The adapter's folder.
    state : dict of str to numpy.ndarray
        adapter, moment1, moment2, and what else there is, as the engine stores them.
    checkpoint : Checkpoint

    Raises
    ------
    FileError
        Where the disk is full; the old checkpoint is then intact.
    """
    text = json.dumps(plain_json({"version": _VERSION, **asdict(checkpoint)}))
    write_tensors(folder / CHECKPOINT_FILE, dict(state), {_KEY: text})


def find_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the description of a folder's checkpoint; None where there is none.

    Raises
    ------
    FileError
        Where it is damaged.
    ResumeError
        Where another version of bitfabric wrote it.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        values = json.loads(read_metadata(path)[_KEY])
    except (KeyError, ValueError) as error:
        raise damaged(path, "it does not say how far the training was") from error
    if values.get("version") != _VERSION:
        raise ResumeError(
            f"{path} was written by another version of bitfabric.",
            "Go on with that version, or remove the file to start again.",
        )
    known = {entry.name for entry in fields(Progress)}
    progress = {name: value for name, value in values["progress"].items() if name in known}
    return Checkpoint(Progress(**progress), values["config"], values["identity"])


def load_state(folder: Path) -> Tensors:
    """Read the arrays of a folder's checkpoint, as `save_checkpoint` took them."""
    path = folder / CHECKPOINT_FILE
    tensors, _ = read_tensors(path)
    if missing := [name for name in _STATE if name not in tensors]:
        raise damaged(path, f"it has no {missing[0]}")
    return tensors


def set_aside(folder: Path) -> bool:
    """Rename a folder's checkpoint to checkpoint.previous.safetensors.

    A training that starts anew must not be resumed from an older one's checkpoint.

    Returns
    -------
    bool
        Whether there was one.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return False
    path.replace(path.with_name("checkpoint.previous.safetensors"))
    return True


def bundle_fingerprint(bundle: BundleLike) -> str:
    """Hash the bundle's manifest, which holds the hash of every file of the bundle."""
    text = json.dumps(bundle.manifest, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def check_identity(saved: Mapping[str, Any], current: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume where something that fixes the loss curve has changed.

    Raises
    ------
    ResumeError
        Naming the first thing that differs, with both values where they can be read.
    """
    for name, value in current.items():
        before = saved.get(name)
        if before == value:
            continue
        readable = not any(isinstance(item, str) and len(item) == 64 for item in (before, value))
        change = f": it was {before} and is now {value}" if readable else ""
        raise ResumeError(
            f"The checkpoint in {folder} was trained with another {name}{change}.",
            f"Use the same {name} to go on, or start again without --resume.",
        )
