"""Layers that are read while others compute give the same bits as layers in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import Bundle, InferenceEngine, TrainingEngine
from bitfabric.runtime.batch import Batch
from bitfabric.runtime.streaming import Outside, StreamingTrainingEngine
from bitfabric.runtime.streaming_inference import StreamingInferenceEngine
from bitfabric.targets import FabricError

from ..parity.conftest import Compiled, compile_tiny

CASE = {"config": {"num_layers": 5, "tied_head": False}, "lora": {"dropout": 0.25}}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_tiny(tmp_path_factory.mktemp("deep"), CASE)


def batches(bundle: Bundle, count: int = 4) -> list[Batch]:
    generator = np.random.default_rng(5)
    shape = (bundle.micro_batch, bundle.context)
    rows = generator.integers(0, bundle.config["vocab_size"], (count, 2, *shape), np.int32)
    return [Batch(tokens, labels, np.zeros(shape, np.int32)) for tokens, labels in rows]


def trained(engine: TrainingEngine, clip: float = 0.0, micro_batches: int = 1) -> list[float]:
    """Take steps; return losses and norms."""
    engine.initialize_adapter(0)
    found = []
    for step, batch in enumerate(batches(engine.bundle), 1):
        for _ in range(micro_batches):
            found.append(engine.accumulate(batch, 1.0 / batch.labels.size, seed=step))
        found.append(engine.update(learning_rate=3e-2, step=step, clip_norm=clip))
    return found


def assert_same_state(one: TrainingEngine, other: TrainingEngine) -> None:
    state = other.state()
    for name, values in one.state().items():
        np.testing.assert_array_equal(values, state[name], err_msg=name)


@pytest.mark.parametrize("resident", [0, 2, 4])
def test_a_streamed_training_is_the_resident_one_bit_for_bit(deep: Compiled, resident: int) -> None:
    whole = TrainingEngine(deep.bundle)
    streamed = StreamingTrainingEngine(deep.bundle, resident)
    assert trained(whole, 0.1, micro_batches=2) == trained(streamed, 0.1, micro_batches=2)
    assert_same_state(whole, streamed)
    batch = batches(deep.bundle)[0]
    assert whole.evaluate(batch) == streamed.evaluate(batch)


@pytest.mark.parametrize(("gradients", "clip"), [("layer", 0.0), ("layer-twice", 0.1)])
def test_gradients_of_one_layer_give_the_same_training(
    deep: Compiled, gradients: str, clip: float
) -> None:
    whole = TrainingEngine(deep.bundle)
    streamed = StreamingTrainingEngine(deep.bundle, 1, gradients)
    assert trained(whole, clip) == trained(streamed, clip)
    state = streamed.state()
    for name, values in whole.state().items():
        np.testing.assert_array_equal(values, state[name], err_msg=name)


@pytest.mark.parametrize("gradients", ["all", "layer-twice"])
@pytest.mark.parametrize("resident", [0, 3, 5])
def test_ends_and_inputs_outside_give_the_same_training(
    deep: Compiled, resident: int, gradients: str
) -> None:
    whole = TrainingEngine(deep.bundle)
    outside = Outside(ends=True, evicted=min(resident, 2), inputs=4)
    streamed = StreamingTrainingEngine(deep.bundle, resident, gradients, outside)
    assert trained(whole, 0.1) == trained(streamed, 0.1)
    state = streamed.state()
    for name, values in whole.state().items():
        np.testing.assert_array_equal(values, state[name], err_msg=name)
    batch = batches(deep.bundle)[0]
    assert whole.evaluate(batch) == streamed.evaluate(batch)


def test_a_cut_file_of_inputs_is_a_sentence(deep: Compiled) -> None:
    engine = StreamingTrainingEngine(deep.bundle, 5, "layer", Outside(inputs=5))
    trained(engine)
    before = engine.state()
    batch = batches(deep.bundle)[0]
    engine.accumulate(batch, 0.1, seed=1)
    engine._states._store._file().truncate(10)  # type: ignore[attr-defined]
    with pytest.raises(FabricError, match="cut short") as caught:
        engine.update(learning_rate=1e-2, step=5)
    assert "--resume" in caught.value.remedy
    assert not np.array_equal(before["adapter"], np.zeros_like(before["adapter"]))


@pytest.mark.parametrize("fault", ["short", "gone"])
def test_ends_that_vanish_are_a_sentence(tmp_path: Path, fault: str) -> None:
    tiny = compile_tiny(tmp_path, CASE)
    engine = StreamingTrainingEngine(tiny.bundle, 5, "all", Outside(ends=True, evicted=1))
    trained(engine)
    before, path = engine.state(), tiny.bundle.weight_file(0)[0]
    if fault == "short":
        with path.open("r+b") as file:
            file.truncate(100)
    else:
        path.unlink()
    with pytest.raises(FabricError, match=r"ends\.bin") as caught:
        engine.accumulate(batches(tiny.bundle)[0], 1.0, seed=1)
    assert "--resume" in caught.value.remedy
    for name, values in engine.state().items():
        np.testing.assert_array_equal(values, before[name])


def test_the_norm_of_the_step_before_clips_and_survives_a_checkpoint(deep: Compiled) -> None:
    engine = StreamingTrainingEngine(deep.bundle, 1, "layer")
    other = StreamingTrainingEngine(deep.bundle, 1, "layer")
    exact = StreamingTrainingEngine(deep.bundle, 1, "layer-twice")
    clipped, expected = trained(engine, 0.1), trained(exact, 0.1)
    assert clipped[:3] == expected[:3], "the first step clips by its own norm"
    assert clipped != expected
    other.initialize_adapter(1)
    other.load_state(engine.state())
    for each in (engine, other):
        each.accumulate(batches(deep.bundle)[1], 0.1, seed=9)
        each.update(learning_rate=1e-2, step=5, clip_norm=0.1)
    assert_same_state(engine, other)


def test_a_second_micro_batch_is_refused_where_one_is_a_step(deep: Compiled) -> None:
    engine = StreamingTrainingEngine(deep.bundle, 0, "layer")
    with pytest.raises(FabricError, match="a step is one micro-batch") as caught:
        trained(engine, micro_batches=2)
    assert "--gradients all" in caught.value.remedy


def test_streamed_text_is_the_same(deep: Compiled) -> None:
    tokens = list(range(2, 13))
    whole = InferenceEngine(deep.bundle, capacity=32)
    streamed = StreamingInferenceEngine(deep.bundle, capacity=32, resident=1)
    np.testing.assert_array_equal(whole.score(tokens), streamed.score(tokens))
    # One token has kernels of its own where all layers are in memory.
    np.testing.assert_allclose(whole.decode(5), streamed.decode(5), rtol=1e-4, atol=1e-4)
    assert streamed.position == len(tokens) + 1


def truncated(bundle: Bundle, layer: int) -> None:
    path, raw = bundle.weight_file(1 + layer)
    with path.open("r+b") as file:
        file.truncate(raw.nbytes // 2)


@pytest.mark.parametrize("fault", ["short", "gone"])
def test_weights_that_vanish_stop_the_step_and_not_the_process(tmp_path: Path, fault: str) -> None:
    tiny = compile_tiny(tmp_path, CASE)
    engine = StreamingTrainingEngine(tiny.bundle, 1)
    trained(engine)
    before, batch = engine.state(), batches(tiny.bundle)[0]
    if fault == "short":
        truncated(tiny.bundle, 3)
    else:
        tiny.bundle.weight_file(4)[0].unlink()
    with pytest.raises(FabricError, match=r"layer_003\.bin") as caught:
        engine.accumulate(batch, 1.0, seed=1)
    assert "--resume" in caught.value.remedy
    for name, values in engine.state().items():
        np.testing.assert_array_equal(values, before[name])


@pytest.mark.slow
def test_a_single_layer_streams_through_one_slot(tmp_path: Path) -> None:
    tiny = compile_tiny(tmp_path, {"config": {"num_layers": 1}})
    assert trained(TrainingEngine(tiny.bundle)) == trained(StreamingTrainingEngine(tiny.bundle, 0))
