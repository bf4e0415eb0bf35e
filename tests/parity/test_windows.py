"""A model over windows equals, bit for bit, the model whose buffers hold every tensor whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import ModelConfig, RandomCheckpoint
from bitfabric.runtime import Batch, Bundle, InferenceEngine, TrainingEngine, open_bundle
from bitfabric.targets import FabricError, get_target

from ..devices import API_PARAMETERS, is_slow
from .conftest import BASE, random_starts

KIB, MIB = 1 << 10, 1 << 20
CONTEXT = 12
LARGE_TABLE = replace(BASE, vocab_size=40000, num_layers=1)
CASES = {
    "every-tensor": (replace(BASE, vocab_size=151), 2600),
    "untied-head": (replace(BASE, vocab_size=301, tied_head=False, activation="silu"), 8 * KIB),
    "one-mib": (LARGE_TABLE, MIB),
}
"""Configurations, and the bytes of the largest buffer; in the first one activations, packed
matrices and workspaces are above it, too."""


def compiled(
    folder: Path, kind: str, config: ModelConfig, limit: int, dropout: float = 0.0
) -> Bundle:
    """Compile a model of random weights for an API with another largest buffer."""
    target = get_target(kind)
    if is_slow(kind):
        # Kernels that share memory take lavapipe a minute to compile.
        target = replace(target, features=target.features - {"shared_memory"})
    assert target.limits is not None
    target = replace(target, limits=replace(target.limits, max_buffer=limit))
    lora = LoraOptions(rank=1, modules=("q_proj", "down_proj"), dropout=dropout)
    options = CompileOptions(context=CONTEXT, lora=lora, head="int8")
    model = RandomCheckpoint(config, seed=3, name="random:tiny")
    compile_model(model, target, options, folder / f"{limit}.fabric")
    return open_bundle(folder / f"{limit}.fabric")


@pytest.fixture(scope="module", params=API_PARAMETERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Every device API in turn."""
    return request.param


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("every-tensor", marks=pytest.mark.slow),
        pytest.param("untied-head", marks=pytest.mark.slow),
        "one-mib",
    ],
)
def both(
    request: pytest.FixtureRequest, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Bundle]:
    """Every case in turn, whole and tiled."""
    folder = tmp_path_factory.mktemp(request.param)
    config, limit = CASES[request.param]
    dropout = 0.1 if request.param == "every-tensor" else 0.0
    whole = compiled(folder, kind, config, 128 * MIB, dropout)
    largest = max(array.nbytes for array in _ends(whole))
    assert largest > 2 * limit
    return whole, compiled(folder, kind, config, limit, dropout)


def _ends(bundle: Bundle) -> list[np.ndarray]:
    return list(bundle.ends.values())


def adapter_of(engine: TrainingEngine) -> dict[str, np.ndarray]:
    """Return a random adapter in the shape of an engine's."""
    generator = np.random.default_rng(0)
    return {
        name: 0.05 * generator.standard_normal(values.shape).astype("float32")
        for name, values in engine.adapter_tensors().items()
    }


@pytest.mark.slow
def test_losses_gradients_and_update(both: tuple[Bundle, Bundle]) -> None:
    vocabulary = both[0].config["vocab_size"]
    generator = np.random.default_rng(1)
    tokens, labels = generator.integers(0, vocabulary, (2, 1, CONTEXT), np.int32)
    # Ends of the table, where windows end.
    tokens[0, :2], labels[0, -2:] = (0, vocabulary - 1), (vocabulary - 1, 0)
    labels[0, 0] = -100
    batch = Batch(tokens, labels, random_starts(1, CONTEXT, 0))
    found = []
    for bundle in both:
        engine = TrainingEngine(bundle)
        engine.load_adapter_tensors(adapter_of(engine))
        losses = engine.evaluate(batch), engine.accumulate(batch, 1.0 / 11, seed=5)
        gradients = engine.gradient_tensors()
        norm = engine.update(learning_rate=1e-3, step=1, clip_norm=1.0)
        found.append((losses, norm, gradients, engine.adapter_tensors()))
    whole, tiled = found
    assert tiled[:2] == whole[:2]
    assert whole[1] > 0.0
    for index in (2, 3):
        for name, values in whole[index].items():
            np.testing.assert_array_equal(tiled[index][name], values, err_msg=name)


@pytest.mark.slow
def test_logits_of_prompts_and_tokens(both: tuple[Bundle, Bundle]) -> None:
    vocabulary = both[0].config["vocab_size"]
    adapter = adapter_of(TrainingEngine(both[0]))
    found = []
    for bundle in both:
        engine = InferenceEngine(bundle, [(adapter, 1.0)], capacity=16)
        rows = [engine.prefill([0, vocabulary - 1, 17, vocabulary // 2, 5])]
        rows += [engine.decode(token) for token in (3, vocabulary - 1, vocabulary // 3)]
        found.append(np.stack([*rows, *engine.score([7])]))
    np.testing.assert_array_equal(found[1], found[0])
    assert found[0].std() > 0.0
    assert found[0].shape == (5, vocabulary)


def test_a_cache_above_the_limit_is_refused(both: tuple[Bundle, Bundle]) -> None:
    config, limit = both[1].config, both[1].manifest["target"]["limits"]["max_buffer"]
    bytes_a_token = 4 * config["num_kv_heads"] * config["head_dim"]
    tokens = limit // bytes_a_token // 32 * 32 + 64
    with pytest.raises(FabricError, match="at once"):
        InferenceEngine(both[1], capacity=tokens)
    with pytest.raises(FabricError, match="at once"):
        InferenceEngine(both[1], capacity=16, batch=limit // bytes_a_token // 16 + 1)
