"""The memory plan is kept, and a budget chooses or refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bitfabric.compiler import CompileOptions, compile_model, estimate
from bitfabric.compiler.calibration import Calibration
from bitfabric.compiler.memory import PAGE, Footprint
from bitfabric.compiler.workspaces import workspaces
from bitfabric.models import open_model
from bitfabric.runtime import open_bundle, training_engine
from bitfabric.runtime.budget import BudgetError
from bitfabric.targets import FabricError, get_target

MIB = 1 << 20
SPEED = Calibration(float32=5e11, int8=2e12, read=4e10, ternary=3e10)
OPTIONS = CompileOptions(context=128)
BENCH = Path(__file__).parents[2] / "bench" / "memory.py"


def planned(model: str = "random:13B", **options: object):
    chosen = replace(OPTIONS, **options)
    return estimate(open_model(model).config, get_target("cpu"), chosen, True, SPEED)


def test_every_point_of_the_plan_is_the_sum_of_its_rows_and_the_peak_the_largest() -> None:
    plan = planned("random:125M").plan
    for index, total in enumerate(plan.totals):
        assert total == sum(row.sizes[index] for row in plan.rows)
    assert plan.peak == max(plan.totals) == sum(size for _, size in plan.at_peak())


def test_cudas_plan_follows_the_workspaces_that_tvm_keeps() -> None:
    # The first kernel's large block serves the second's small request: its large ones are new.
    requests = ((16 * MIB,), (PAGE, 40 * MIB), (16 * MIB,))
    known = Footprint((), 40 * MIB + PAGE, requests)
    names = "embed layer_forward head_loss_vjp layer_vjp layer_accumulate gradient_squares update"
    found = {name: Footprint((), 0) for name in names.split()} | {"layer_forward": known}
    _, scratch = workspaces(found, get_target("cuda-sm90"), 0)
    assert set(scratch) == {56 * MIB}
    kept = json.loads(json.dumps(asdict(known)))
    assert Footprint.of(kept) == known


def test_a_budget_keeps_as_many_layers_as_fit_and_changes_no_loss_while_it_can() -> None:
    whole = planned()
    assert planned(memory_budget=whole.plan.peak).options.resident_layers is None
    half = planned(memory_budget=2048 * MIB)
    assert 0 < half.options.resident_layers < 40
    assert half.options.gradients == "all"
    sizes = {row.name: max(row.sizes) for row in half.plan.rows}
    layer = sizes["layers passing through"] / 2 / MIB
    assert 2048 - layer < half.peak_memory_mib <= 2048


@pytest.mark.parametrize(
    "target",
    [
        "cpu",
        pytest.param("cuda-sm90", marks=pytest.mark.slow),
        pytest.param("vulkan", marks=pytest.mark.slow),
    ],
)
def test_every_layer_of_13b_stays_in_2789_mib(target: str) -> None:
    options = replace(OPTIONS, memory_budget=2789 * MIB)
    found = estimate(open_model("random:13B").config, get_target(target), options, True, SPEED)
    assert found.options.resident_layers is None
    assert found.options.host_ends
    assert found.peak_memory_mib <= 2789


def test_a_smaller_budget_gives_up_inputs_then_gradients_then_refuses_with_the_least() -> None:
    small = planned(memory_budget=800 * MIB)
    # What changes a loss is taken back where the inputs alone will do.
    assert (small.options.moments, small.options.gradients) == ("f32", "all")
    assert small.options.host_inputs > 0
    assert small.peak_memory_mib <= 800
    tight = planned(memory_budget=600 * MIB)
    assert (tight.options.resident_layers, tight.options.gradients) == (0, "layer")
    assert tight.peak_memory_mib <= 600
    with pytest.raises(FabricError, match="at least; the budget is 400 MiB") as caught:
        planned(memory_budget=400 * MIB)
    least = int(caught.value.remedy.split("--memory-budget ")[1].split("MiB")[0])
    assert planned(memory_budget=least * MIB).peak_memory_mib <= least
    with pytest.raises(FabricError):
        planned(memory_budget=(least - 1) * MIB)


def test_rows_of_a_micro_batch_are_given_up_before_layers_are_streamed() -> None:
    model = "random:125M"
    one, four = (planned(model, micro_batch=rows, recompute="all") for rows in (1, 4))
    found = planned(model, micro_batch=4, memory_budget=(one.plan.peak + four.plan.peak) // 2)
    assert found.options.recompute == "all"
    assert found.options.micro_batch == 2
    assert found.options.resident_layers is None


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param({}, id="resident"),
        pytest.param({"resident_layers": 0}, id="streaming"),
        pytest.param({"host_ends": True, "host_inputs": 9, "gradients": "layer"}, id="outside"),
    ],
)
def test_a_training_takes_no_more_than_planned(chosen: dict, tmp_path: Path) -> None:
    options = replace(OPTIONS, **chosen)
    path = compile_model(open_model("random:125M"), get_target("cpu"), options, tmp_path / "m")
    run = subprocess.run(
        [sys.executable, str(BENCH), "measure", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout.splitlines()[-1])
    assert 0.8 * found["planned"] < found["memory"] <= found["planned"]
    assert found["losses"][-1] < found["losses"][0]


def test_a_budget_lowered_after_the_compilation_is_refused(tmp_path: Path) -> None:
    options = replace(OPTIONS, context=16, memory_budget=120 * MIB)
    path = compile_model(open_model("nano"), get_target("cpu"), options, tmp_path / "nano")
    bundle = open_bundle(path)
    assert bundle.manifest["plan"]["budget"] == 120 * MIB
    with pytest.raises(BudgetError, match="the budget is 60 MiB") as caught:
        training_engine(bundle, 60 * MIB)
    assert "--memory-budget 60MiB" in caught.value.remedy
