"""Predicts how fast a candidate is from its decisions and its kernel's sizes, with xgboost.

One model a computation, over all its shapes and targets: what was learned of one device is a first
guess for another. It learns the logarithm of a candidate's time by its default's.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...schedules.decisions import Value
from ...targets import FabricError, Target
from .store import data_folder

LEAST = 8
"""Candidates below which nothing is learned."""
WORST = 4.0
"""A candidate that is slower than this, or fails, is simply bad."""
SETTINGS = {
    "objective": "reg:squarederror",
    "max_depth": 5,
    "eta": 0.2,
    "min_child_weight": 1,
    "lambda": 1.0,
    "nthread": 1,
    "seed": 0,
    "verbosity": 0,
}
ROUNDS = 40


@dataclass(frozen=True)
class Trial:
    """A candidate that was measured.

    Attributes
    ----------
    key : str
        Of the kernel.
    features : dict of str to float
        What is known of it, see :func:`features_of`.
    ratio : float
        Its time by the default's; infinite where it failed.
    """

    key: str
    features: dict[str, float]
    ratio: float


def require_xgboost() -> None:
    """Refuse to tune where the cost model's library is missing.

    Raises
    ------
    FabricError
        If it is not installed.
    """
    if importlib.util.find_spec("xgboost") is None:
        raise FabricError(
            "Tuning needs xgboost, which is not installed.",
            "Install it: pip install 'bitfabric[tune]'",
        )


def features_of(
    decisions: dict[str, Value], sizes: Sequence[int], target: Target
) -> dict[str, float]:
    """Return the features of a candidate: every decision, every size, and the kind of device."""
    found = {f"size {i}": math.log2(size + 1) for i, size in enumerate(sizes)}
    found["vector bytes"] = float(target.vector_bytes)
    found["processor"] = float(target.family == "cpu")
    for name, value in decisions.items():
        if isinstance(value, tuple):
            found |= {f"{name} {i}": float(item) for i, item in enumerate(value)}
            found[f"{name} product"] = float(math.prod(value))
        elif isinstance(value, str):
            found[f"{name} is {value}"] = 1.0
        else:
            found[name] = math.log2(value + 1) if value >= 0 else float(value)
    return found


class CostModel:
    """The model of one computation.

    Parameters
    ----------
    kernel : str
        The computation's name.
    """

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self._booster: Any = None
        self._names: list[str] = []

    @property
    def path(self) -> Path:
        """Where it is kept between runs."""
        return data_folder() / "models" / f"{self.kernel}.json"

    @property
    def is_trained(self) -> bool:
        """Whether it predicts anything."""
        return self._booster is not None

    def load(self) -> None:
        """Go on with what an earlier run learned; a file that is none is left alone."""
        import xgboost

        booster = xgboost.Booster()
        try:
            booster.load_model(str(self.path))
        except (xgboost.core.XGBoostError, OSError):
            return
        self._booster, self._names = booster, list(booster.feature_names or [])

    def save(self) -> None:
        """Keep what was learned."""
        if self._booster is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The library tells the format by the name's end.
            temporary = self.path.with_name(f".new.{self.path.name}")
            self._booster.save_model(str(temporary))
            temporary.replace(self.path)

    def fit(self, trials: Sequence[Trial]) -> None:
        """Learn from trials, of any shapes and targets; from too few nothing is learned."""
        import xgboost

        if len(trials) < LEAST:
            return
        self._names = sorted({name for trial in trials for name in trial.features})
        labels = np.log([min(trial.ratio, WORST) for trial in trials])
        data = self._matrix([trial.features for trial in trials])
        data.set_label(labels)
        self._booster = xgboost.train(SETTINGS, data, ROUNDS)

    def predict(self, features: Sequence[dict[str, float]]) -> np.ndarray:
        """Return the predicted times by the default's; 1 where nothing was learned."""
        if self._booster is None or not features:
            return np.ones(len(features))
        return np.exp(self._booster.predict(self._matrix(features)))

    def _matrix(self, features: Sequence[dict[str, float]]) -> Any:
        import xgboost

        rows = [[each.get(name, math.nan) for name in self._names] for each in features]
        return xgboost.DMatrix(np.array(rows, np.float32), feature_names=self._names)
