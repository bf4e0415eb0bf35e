"""MetaSchedule's cost model, xgboost over features of each store of a program, kept between runs.

One model serves all kernels that are searched so, on all targets: its features are counts of loops,
accesses and arithmetic, which mean the same everywhere, and it learns each kernel's times by its
fastest. MetaSchedule would keep it by pickling; here it is arrays of numbers.
"""

from __future__ import annotations

import zipfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.cost_model.xgb_model import FeatureGroup

from .store import data_folder

WARM = 8
"""Candidates below which its predictions are random."""
ARRAYS = ("rows", "counts", "costs", "kernels")
Model = Any
"""`ms.cost_model.XGBModel`, which is no type: a decorator replaces it."""


def path() -> Path:
    """Return where the model is kept."""
    return data_folder() / "models" / "traces.npz"


def load() -> Model:
    """Return the model with what earlier runs learned; a file that is none is left alone."""
    model = ms.cost_model.XGBModel(
        num_warmup_samples=WARM, num_tuning_cores=1, verbose_eval=0, adaptive_training=True
    )
    try:
        with np.load(path(), allow_pickle=False) as found:
            rows, counts, costs, kernels = (found[name] for name in ARRAYS)
        features = np.split(rows, np.cumsum(counts)[:-1])
        if not len(features) == len(costs) == len(kernels):
            return model
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return model
    several = groupby(range(len(kernels)), key=lambda index: str(kernels[index]))
    for kernel, indices in several:
        chosen = list(indices)
        group = FeatureGroup(kernel, [features[i] for i in chosen], costs[chosen])
        model.data[kernel] = group
    model.data_size = model.last_train_size = len(costs)
    fastest = np.array([model.data[str(kernel)].min_cost for kernel in kernels])
    model._train(xs=features, ys=fastest / costs)
    return model


def save(model: Model) -> None:
    """Keep what was learned, whole or not at all."""
    groups = list(model.data.values())
    features = [rows for group in groups for rows in group.features]
    if not features:
        return
    path().parent.mkdir(parents=True, exist_ok=True)
    temporary = path().with_name(f".new.{path().name}")
    np.savez_compressed(
        temporary,
        rows=np.concatenate(features),
        counts=np.array([len(rows) for rows in features]),
        costs=np.concatenate([group.costs for group in groups]),
        kernels=np.array([group.group_hash for group in groups for _ in group.features]),
    )
    temporary.replace(path())
