"""What is CUDA's own on a real device: its description, its graphs, and the memory it reports.

Needs the runtime alone, and of the bundles that `make_bundles.py` wrote those for CUDA: see
`test_device_parity`, which compares their numbers.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import Bundle, InferenceEngine, open_bundle, training_engine
from bitfabric.runtime.backends import devices
from bitfabric.runtime.batch import Batch
from bitfabric.runtime.cuda.graphs import Graph
from bitfabric.targets import APIS, FabricError
from bitfabric.targets.ffi import tvm_ffi

FOLDER = os.environ.get("FABRIC_HARDWARE_BUNDLES", "")
NAMES = sorted(path.stem for path in Path(FOLDER).glob("*-on-cuda*.fabric"))
MIB = 1 << 20


def _missing() -> str:
    try:
        devices("cuda")
    except FabricError as error:
        return str(error)
    return "" if FOLDER and NAMES else "FABRIC_HARDWARE_BUNDLES names no folder of CUDA bundles"


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing())


@pytest.fixture(params=NAMES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Return a bundle for CUDA."""
    return open_bundle(Path(FOLDER) / f"{request.param}.fabric")


def test_the_device_is_used_by_a_target_of_its_architecture() -> None:
    device = devices("cuda")[0]
    verdict = APIS["cuda"].judge(device)
    major, minor = device["capability"]
    assert verdict.used
    assert verdict.target in (f"cuda-sm{major}{minor}", "cuda")
    assert device["subgroup_sizes"] == [32, 32]
    assert device["local_memory"] >= 48 << 10


def test_tokens_after_the_second_are_one_graph_and_the_same(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, launch = [], Graph.launch

    def counted(graph: Graph) -> None:
        launched.append(graph)
        launch(graph)

    monkeypatch.setattr(Graph, "launch", counted)
    tokens = np.random.default_rng(5).integers(0, bundle.config["vocab_size"], 12)
    runs = []
    for _ in range(2):
        engine = InferenceEngine(bundle, capacity=64)
        engine.prefill(tokens[:4])
        runs.append(np.stack([engine.decode(int(token)).copy() for token in tokens]))
    # The first token compiles, the second is recorded and launched, the others are launched.
    assert len(launched) == 2 * (len(tokens) - 1)
    np.testing.assert_array_equal(*runs)
    assert np.isfinite(runs[0]).all()


def test_branches_of_a_step_compute_what_a_chain_does(bundle: Bundle) -> None:
    shape = bundle.micro_batch, bundle.context
    rows = np.random.default_rng(4).integers(
        0, bundle.config["vocab_size"], (shape[0], shape[1] + 1), np.int32
    )
    batch = Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), np.zeros(shape, np.int32))
    assert bundle.manifest["branches"]
    runs = []
    for manifest in (bundle.manifest, bundle.manifest | {"branches": {}}):
        engine = training_engine(replace(bundle, manifest=manifest))
        engine.initialize_adapter(0)
        losses = []
        for number in range(1, 9):
            losses.append(engine.accumulate(batch, 1.0 / rows.size, number))
            engine.update(learning_rate=1e-3, step=number)
        runs.append(losses)
    assert runs[0] == runs[1]


def test_two_trainings_in_turns_do_not_touch_each_other(bundle: Bundle) -> None:
    rng = np.random.default_rng(3)
    shape = bundle.micro_batch, bundle.context
    rows = rng.integers(0, bundle.config["vocab_size"], (shape[0], shape[1] + 1), np.int32)
    batch = Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), np.zeros(shape, np.int32))

    def started() -> Callable[[int], float]:
        engine = training_engine(bundle)
        engine.initialize_adapter(0)

        def step(number: int) -> float:
            loss = engine.accumulate(batch, 1.0 / rows.size, number)
            engine.update(learning_rate=1e-3, step=number)
            return loss

        return step

    alone = started()
    expected = [alone(number) for number in range(1, 7)]
    first = started()
    # The first has recorded its kernels when the second takes its memory.
    losses = [first(number) for number in range(1, 4)]
    second = started()
    for number in range(1, 7):
        losses += [first(number + 3)] if number < 4 else []
        assert second(number) == expected[number - 1]
    assert losses == expected


def test_the_memory_is_the_devices(bundle: Bundle) -> None:
    engine = InferenceEngine(bundle, capacity=64)
    engine.prefill(np.arange(4))
    device = devices("cuda")[0]
    assert 0 < engine.device_memory_mib < device["global_memory"] / MIB


def _step(bundle: Bundle, budget: int | None = None) -> None:
    engine = training_engine(bundle, budget)
    engine.initialize_adapter(0)
    shape = (bundle.micro_batch, bundle.context)
    tokens = np.random.default_rng(5).integers(0, bundle.config["vocab_size"], shape, np.int32)
    batch = Batch(tokens, tokens, np.zeros(shape, np.int32))
    for step in (1, 2, 3):
        engine.accumulate(batch, 1.0 / tokens.size, seed=step)
        engine.update(learning_rate=1e-3, step=step)


def _function(name: str) -> Callable[..., object]:
    return tvm_ffi.get_global_func(f"bitfabric.cuda.{name}")


def _in_use() -> int:
    """Return what is held once the pool of other tests has been emptied."""
    devices("cuda")
    gc.collect()
    tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
    return json.loads(_function("memory")(0))["in_use"]


def test_a_training_takes_no_more_than_planned(bundle: Bundle) -> None:
    before = _in_use()
    _function("reset_peak")(0)
    _step(bundle)
    taken = json.loads(_function("memory")(0))["peak"] - before
    assert 0 < taken <= bundle.manifest["plan"]["training"]["peak"]


def test_what_exceeds_the_budget_is_refused_before_it_is_taken(bundle: Bundle) -> None:
    before, plan = _in_use(), bundle.manifest["plan"]
    bound = before + plan["training"]["peak"] // 4
    _function("reset_peak")(0)
    _function("budget")(0, bound)
    try:
        with pytest.raises(FabricError, match="memory budget") as caught:
            _step(bundle)
        assert "--memory-budget" in caught.value.remedy
        assert json.loads(_function("memory")(0))["peak"] <= bound
    finally:
        _function("budget")(0, 1 << 60)
    _step(bundle)
