"""On a device: streamed layers, the plan's word, and an allocator that holds a budget."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import training_engine
from bitfabric.runtime.engine import TrainingEngine
from bitfabric.runtime.inference import InferenceEngine
from bitfabric.runtime.streaming import Outside, StreamingTrainingEngine
from bitfabric.runtime.streaming_inference import StreamingInferenceEngine
from bitfabric.targets import FabricError
from bitfabric.targets.ffi import tvm_ffi

from ..devices import needs
from ..parity.conftest import Compiled, compile_tiny
from .test_streaming import assert_same_state, batches, trained

CASE = {"config": {"num_layers": 5, "vocab_size": 512}}
TARGETS = [
    pytest.param(name, marks=needs(name.partition(":")[0]), id=name)
    for name in ("opencl", "vulkan:auto")
]
NO_BUDGET = 1 << 60


@pytest.fixture(scope="module", params=TARGETS)
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("device")
    return compile_tiny(folder, CASE, target=request.param, head="int8", resident_layers=1)


def usage(kind: str) -> dict[str, int]:
    return json.loads(tvm_ffi.get_global_func(f"bitfabric.{kind}.memory")(0))


@contextmanager
def budget(kind: str, size: int) -> Iterator[None]:
    """Bound the first device's memory for a while, counted from what is in use already."""
    bound = tvm_ffi.get_global_func(f"bitfabric.{kind}.budget")
    bound(0, usage(kind)["in_use"] + size)
    try:
        yield
    finally:
        bound(0, NO_BUDGET)


def test_a_streamed_step_on_a_device_is_the_resident_one_bit_for_bit(there: Compiled) -> None:
    whole = TrainingEngine(there.bundle)
    streamed = StreamingTrainingEngine(there.bundle, 1)
    assert trained(whole, 0.1) == trained(streamed, 0.1)
    assert_same_state(whole, streamed)
    one = InferenceEngine(there.bundle, capacity=32).score(range(2, 13))
    other = StreamingInferenceEngine(there.bundle, capacity=32, resident=1).score(range(2, 13))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("resident", [1, 5])
def test_ends_and_inputs_outside_of_a_device_give_the_same_training(
    there: Compiled, resident: int
) -> None:
    whole = TrainingEngine(there.bundle)
    outside = Outside(ends=True, evicted=1, inputs=3)
    streamed = StreamingTrainingEngine(there.bundle, resident, "layer-twice", outside)
    assert trained(whole, 0.1) == trained(streamed, 0.1)
    state = streamed.state()
    for name, values in whole.state().items():
        np.testing.assert_array_equal(values, state[name], err_msg=name)


def test_the_device_holds_no_more_than_planned(there: Compiled) -> None:
    kind, plan = there.bundle.kind, there.bundle.manifest["plan"]
    gc.collect()
    engine = training_engine(there.bundle)
    del engine
    gc.collect()
    before = usage(kind)["in_use"]
    tvm_ffi.get_global_func(f"bitfabric.{kind}.reset_peak")(0)
    engine = training_engine(there.bundle)
    assert isinstance(engine, StreamingTrainingEngine)
    trained(engine, 1.0)
    taken = usage(kind)["peak"] - before
    assert 0.6 * plan["training"]["peak"] < taken <= plan["training"]["peak"]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("resident", [0, None])
def test_with_ends_and_inputs_outside_a_device_holds_no_more_than_planned(
    target: str, resident: int | None, tmp_path: Path
) -> None:
    chosen = {"host_ends": True, "host_inputs": 3, "gradients": "layer"}
    bundle = compile_tiny(
        tmp_path, CASE, target=target, head="int8", resident_layers=resident, **chosen
    ).bundle
    kind, plan = bundle.kind, bundle.manifest["plan"]["training"]["peak"]
    engine = training_engine(bundle)
    del engine
    gc.collect()
    before = usage(kind)["in_use"]
    tvm_ffi.get_global_func(f"bitfabric.{kind}.reset_peak")(0)
    trained(training_engine(bundle), 1.0)
    assert 0.6 * plan < usage(kind)["peak"] - before <= plan


def test_what_exceeds_the_budget_is_refused_and_the_other_training_goes_on(
    there: Compiled,
) -> None:
    first = training_engine(there.bundle)
    expected = trained(first)
    plan = there.bundle.manifest["plan"]["training"]["peak"]
    with budget(there.bundle.kind, plan // 4):
        with pytest.raises(FabricError, match="memory budget") as caught:
            trained(training_engine(there.bundle))
        assert "--memory-budget" in caught.value.remedy
        gc.collect()
    assert trained(first) == expected
    with budget(there.bundle.kind, plan):
        assert trained(training_engine(there.bundle)) == expected


def test_a_file_cut_short_stops_the_step_and_the_state_is_whole(there: Compiled) -> None:
    engine = StreamingTrainingEngine(there.bundle, 1)
    trained(engine)
    before = engine.state()
    path, raw = there.bundle.weight_file(5)
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: raw.nbytes // 2])
        with pytest.raises(FabricError, match=r"layer_004\.bin"):
            engine.accumulate(batches(there.bundle)[0], 1.0, seed=1)
    finally:
        path.write_bytes(whole)
    for name, values in engine.state().items():
        np.testing.assert_array_equal(values, before[name])
