"""Every setting of a training, its default, its limits, and where its value comes from."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..targets import FabricError
from .data import LOSS_ON
from .files import read_error
from .schedule import SCHEDULERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_DEFAULT_EPOCHS = 3
_PATHS = ("train", "eval_data", "adapter", "init_adapter", "log_dir")


class ConfigError(FabricError):
    """A setting is unknown or has a value that cannot be."""


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training; the defaults suit LoRA on a few hundred to thousands of records.

    Parameters
    ----------
    train, eval_data, adapter : str
        Training data, validation data ("" for none), and the folder of the adapter.
    init_adapter : str
        The adapter to start from, a folder of PEFT's or a GGUF file; "" for a new one.
    epochs : float
        How often all rows are seen; 0 means 3, or as many as `max_steps` takes.
    max_steps : int
        Optimizer steps at most; 0 for no limit.
    batch, accumulate : int
        An optimizer step sees `batch` rows `accumulate` times over.
    context : int
        Positions of a row that are used; 0 for all that were compiled.
    learning_rate : float
        At the peak of the schedule.
    scheduler : str
        ``constant``, ``linear`` or ``cosine``.
    warmup_ratio : float
        Part of the steps in which the learning rate rises, 0 to 1.
    weight_decay, clip_norm : float
        AdamW's decoupled decay, and the gradients' largest global norm (0 for no limit).
    seed : int
        Of the adapter's start, the order of the data and dropout.
    eval_every : int
        Steps between validations; 0 for once an epoch.
    early_stop : int
        Validations in a row without a better loss after which to stop; 0 for never.
    save_every : int
        Steps between checkpoints; 0 for only at the end and when interrupted.
    loss_on : str
        ``all``, ``completion`` or ``auto``; see `CorpusOptions`.
    pack, truncate, skip_bad : bool
        Whether documents share rows; whether long records lose their ends; whether bad records
        are left out.
    log_dir : str
        Folder for TensorBoard's events; "" for none.
    """

    train: str = ""
    eval_data: str = ""
    adapter: str = "adapter"
    init_adapter: str = ""
    epochs: float = 0.0
    max_steps: int = 0
    batch: int = 4
    accumulate: int = 1
    context: int = 0
    learning_rate: float = 5e-4
    scheduler: str = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0
    eval_every: int = 0
    early_stop: int = 0
    save_every: int = 50
    loss_on: str = "auto"
    pack: bool = False
    truncate: bool = False
    skip_bad: bool = False
    log_dir: str = ""

    def validate(self) -> None:
        """Check every value by itself.

        Raises
        ------
        ConfigError
            Naming the first setting that cannot be, its value and what it may be.
        """
        if not self.train:
            raise ConfigError("No training data is given.", "Name a file with --train.")
        for name in ("batch", "accumulate"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "context", "seed", "eval_every", "early_stop", "save_every"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("epochs", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            self._require(name, math.isfinite(value) and value >= 0, "at least 0")
        self._require("learning_rate", 0 < self.learning_rate <= 1, "above 0 and at most 1")
        self._require("warmup_ratio", 0 <= self.warmup_ratio <= 1, "between 0 and 1")
        self._require("scheduler", self.scheduler in SCHEDULERS, _one_of(SCHEDULERS))
        self._require("loss_on", self.loss_on in LOSS_ON, _one_of(LOSS_ON))
        self._require("adapter", bool(self.adapter), "the name of a folder")
        if self.early_stop and not self.eval_data:
            raise ConfigError(
                "--early-stop needs a validation loss, and there is no validation data.",
                "Name a file with --eval-data, or leave --early-stop out.",
            )

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            value = getattr(self, name)
            raise ConfigError(
                f"{_option(name)} is {value}, and must be {allowed}.",
                f"Give {_option(name)} a value that is {allowed}.",
            )

    def row_length(self, compiled: int) -> int:
        """Give the positions of a row that are used, of the `compiled` ones.

        Raises
        ------
        ConfigError
            Where more are asked for than were compiled.
        """
        if self.context > compiled:
            raise ConfigError(
                f"A context of {self.context} tokens was asked for, and the bundle was compiled "
                f"for {compiled}.",
                f"Compile again with --context {self.context}, or ask for at most {compiled}.",
            )
        return self.context or compiled

    def total_steps(self, steps_per_epoch: int) -> int:
        """Give the number of optimizer steps, at least 1."""
        epochs = self.epochs or (0 if self.max_steps else _DEFAULT_EPOCHS)
        limits = [self.max_steps] if self.max_steps else []
        limits += [math.ceil(epochs * steps_per_epoch)] if epochs else []
        return max(1, min(limits))

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as JSON can hold them, paths such that they hold in any folder."""
        paths = {name: value for name in _PATHS if (value := getattr(self, name))}
        return {**asdict(self), **{name: str(Path(path).resolve()) for name, path in paths.items()}}


def make_config(
    flags: Mapping[str, Any],
    file: Path | None = None,
    saved: Mapping[str, Any] | None = None,
) -> TrainingConfig:
    """Put a configuration together: flags over the file, over the checkpoint's, over defaults.

    Parameters
    ----------
    flags : mapping
        Settings given on the command line; None where one was not given.
    file : Path or None
        A TOML file of settings (`read_config_file`).
    saved : mapping or None
        The settings that a checkpoint was trained with, when it is resumed: what is not said
        again stays as it was.

    Returns
    -------
    TrainingConfig
        Not validated yet.

    Raises
    ------
    ConfigError
        Where a setting is unknown or of the wrong type.
    """
    names = {field.name for field in fields(TrainingConfig)}
    # A setting that only another version knows cannot be what this run depends on.
    values = {name: value for name, value in (saved or {}).items() if name in names}
    values.update(read_config_file(file) if file else {})
    values.update({name: value for name, value in flags.items() if value is not None})
    return replace(TrainingConfig(), **_check(values, "the command line"))


def read_config_file(path: Path) -> dict[str, Any]:
    """Read settings from a TOML file, at its top level, spelled with hyphens or underscores.

    Paths in it are relative to the file itself.

    Raises
    ------
    ConfigError
        Where it is not valid TOML, or a setting is unknown or of the wrong type.
    FileError
        Where it cannot be read.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}.", "Correct the line it names."
        ) from error
    settings = _check({name.replace("-", "_"): value for name, value in values.items()}, str(path))
    for name in _PATHS:
        if settings.get(name):
            settings[name] = str(path.parent / settings[name])
    return settings


def _check(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check names and types of settings; whole numbers pass as floats."""
    kinds = {field.name: str(field.type) for field in fields(TrainingConfig)}
    checked = {}
    for name, value in values.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, 1, 0.5)
            raise ConfigError(
                f"{source} sets `{name}`, which is no setting of a training.",
                f"Did you mean `{near[0]}`?" if near else f"Settings are {', '.join(kinds)}.",
            )
        checked[name] = _typed(name, value, kinds[name], source)
    return checked


def _typed(name: str, value: Any, kind: str, source: str) -> Any:
    """Give `value` as its setting's type, or refuse it."""
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind == "str" and isinstance(value, Path):
        return str(value)
    if type(value).__name__ == kind:
        return value
    word = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    raise ConfigError(
        f"{source} sets `{name}` to {value!r}, which is not {word.get(kind, 'text')}.",
        f"Make `{name}` {word.get(kind, 'text')}.",
    )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _one_of(names: tuple[str, ...]) -> str:
    return "one of " + ", ".join(names)
