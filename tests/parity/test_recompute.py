"""What is kept of a layer's forward pass takes memory, and changes no bit of a training."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.compiler import CompileOptions, estimate
from bitfabric.compiler.calibration import Calibration
from bitfabric.compiler.options import RECOMPUTE
from bitfabric.compiler.pipeline import build_graph
from bitfabric.compiler.recompute import PLACES, kept_sizes, way_to_recompute
from bitfabric.models import open_model
from bitfabric.models.graph import KEPT
from bitfabric.runtime import TrainingEngine
from bitfabric.targets import FabricError, get_target

from ..devices import needs
from .conftest import BASE, CASES, compile_tiny
from .test_training import labelled, setting

SPEED = Calibration(float32=5e11, int8=2e12, read=4e10, ternary=3e10)
MIB = 1 << 20
AGAIN = {"all": (3, 1), "wide": (2, 0), "feed-forward": (1, 0), "none": (0, 0)}
"""Projections and attentions that the adjoint computes again."""
SETTINGS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "processor": ({"target": "cpu"}, ("wide", "none")),
    "dropout": ({"target": "cpu", "case": "dropout"}, ("none",)),
    "opencl": ({"target": "opencl"}, ("feed-forward",)),
}
"""What is compiled, and the ways that are held against recomputing all."""


def test_every_way_is_offered_and_each_keeps_less_than_the_one_before() -> None:
    assert set(PLACES) | {"auto"} == set(RECOMPUTE)
    kept = [set(places) for places in PLACES.values()]
    assert all(less < more for more, less in pairwise(kept))


@pytest.mark.parametrize("target", ["cpu", "vulkan"])
@pytest.mark.parametrize("way", PLACES)
def test_the_adjoint_computes_again_what_is_not_kept(way: str, target: str) -> None:
    options = CompileOptions(context=8, micro_batch=2, recompute=way)
    module = build_graph(BASE, options, get_target(target))
    text = module["layer_vjp"].script()
    assert (text.count("bitlinear_kernel"), text.count("attention_kernel")) == AGAIN[way]
    names = {name.name_hint for name in module.get_global_vars()}
    assert (KEPT in names) == (way != "all")
    if KEPT in names:
        fields = module[KEPT].ret_ty.fields[1:]
        sizes = [4 * prod(int(extent) for extent in field.shape) for field in fields]
        assert sizes == kept_sizes(BASE, options, way)


def trained(folder: Path, way: str, target: str, case: str = "") -> tuple[list[float], Any]:
    chosen = CASES["grouped-query-relu2"] if not case else {"lora": {"dropout": 0.3}}
    tiny = compile_tiny(folder / way, chosen, target=target, head="int8", recompute=way)
    assert tiny.bundle.manifest["plan"]["recompute"] == way
    adapter, _, batch = setting(tiny)
    engine = TrainingEngine(tiny.bundle)
    engine.load_adapter_tensors(adapter)
    losses = []
    for step in (1, 2, 3):
        losses.append(engine.accumulate(batch, 1.0 / labelled(batch), seed=step))
        engine.update(learning_rate=1e-2, step=step)
    return losses, engine.state()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("processor", marks=pytest.mark.slow),
        pytest.param("dropout", marks=pytest.mark.slow),
        pytest.param("opencl", marks=(*needs("opencl"), pytest.mark.slow)),
    ],
)
def test_losses_and_adapters_are_the_same_bits(name: str, tmp_path: Path) -> None:
    compiled, ways = SETTINGS[name]
    losses, state = trained(tmp_path, "all", **compiled)
    assert losses[-1] < losses[0]
    for way in ways:
        again, other = trained(tmp_path, way, **compiled)
        assert again == losses
        for key, value in state.items():
            np.testing.assert_array_equal(other[key], value, err_msg=f"{way} {key}")


def planned(**options: Any) -> Any:
    chosen = CompileOptions(context=128, **options)
    return estimate(open_model("random:125M").config, get_target("cpu"), chosen, True, SPEED)


def test_the_plan_counts_what_is_kept_and_a_budget_keeps_what_fits() -> None:
    peaks = {}
    for way in PLACES:
        found = planned(recompute=way)
        kept = sum(kept_sizes(open_model("random:125M").config, found.options, way))
        rows = {row.name: max(row.sizes) for row in found.plan.rows}
        assert rows["kept activations"] == 11 * kept
        peaks[way] = found.plan.peak
    assert list(peaks.values()) == sorted(peaks.values(), reverse=True)
    for way, peak in peaks.items():
        within = planned(memory_budget=peak).options
        assert (within.recompute, within.resident_layers) == (way, None)
    assert planned(memory_budget=peaks["all"] - MIB).options.recompute == "all"


def test_without_a_wish_what_is_small_beside_the_model_is_kept() -> None:
    config, cpu, gpu = open_model("random:1B").config, get_target("cpu"), get_target("vulkan")
    options = CompileOptions(context=128)
    assert way_to_recompute(config, cpu, options) == "wide"
    assert way_to_recompute(config, gpu, options) == "feed-forward"
    assert way_to_recompute(config, gpu, replace(options, micro_batch=8, context=512)) == "all"
    assert way_to_recompute(config, gpu, replace(options, gradients="layer")) == "all"
    assert way_to_recompute(config, gpu, replace(options, resident_layers=0)) == "all"


@pytest.mark.parametrize("saving", [{"resident_layers": 0}, {"gradients": "layer"}])
def test_keeping_activations_layer_by_layer_is_refused(saving: dict[str, Any]) -> None:
    with pytest.raises(FabricError, match="--recompute wide keeps activations of every layer"):
        CompileOptions(recompute="wide", **saving)
