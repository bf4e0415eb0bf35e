"""Random models: published shapes, the same on every run, never in memory as a whole."""

from __future__ import annotations

import math
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from bitfabric.models import MODULES, RandomCheckpoint, open_model
from bitfabric.models.random_weights import SHAPES
from bitfabric.targets import FabricError

from ..reference.torch_bitnet import TorchBitNet

SMALL = replace(SHAPES["125M"], num_layers=2, vocab_size=5000)
GATE_DIGEST = 1722546874  # CRC-32 of one matrix


@pytest.mark.parametrize(
    ("size", "hidden", "ffn", "layers", "heads", "millions"),
    [
        ("125M", 768, 3072, 11, 12, 128),
        ("350M", 1024, 3072, 24, 16, 360),
        ("1B", 2048, 3584, 24, 32, 997),
        ("2.7B", 3072, 7680, 24, 32, 2703),
        ("3.8B", 3840, 8192, 24, 32, 3804),
        ("7B", 4096, 12032, 32, 32, 7011),
        ("13B", 5120, 13824, 40, 40, 12853),
    ],
)
def test_published_shapes(
    size: str, hidden: int, ffn: int, layers: int, heads: int, millions: int
) -> None:
    config = open_model(f"random:{size}").config
    assert (config.hidden_size, config.intermediate_size) == (hidden, ffn)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (layers, heads, heads)
    assert (config.vocab_size, config.activation, config.tied_head) == (32002, "silu", True)
    assert round(config.parameters / 1e6) == millions


def test_same_seed_same_model_for_ever() -> None:
    model = RandomCheckpoint(SMALL, seed=3)
    weight = model.ternary(1, "gate_proj")
    # The digest pins the model itself: bundles and numbers of other days stay comparable.
    assert zlib.crc32(weight.codes.tobytes()) == GATE_DIGEST
    again = RandomCheckpoint(SMALL, seed=3)
    assert np.array_equal(again.ternary(1, "gate_proj").codes, weight.codes)
    assert np.array_equal(again.embedding(), model.embedding())
    assert np.array_equal(again.norm("final_norm"), model.norm("final_norm"))


def test_seed_layer_and_module_all_matter() -> None:
    model, other = RandomCheckpoint(SMALL), RandomCheckpoint(SMALL, seed=1)
    codes = model.ternary(0, "q_proj").codes
    for different in (
        other.ternary(0, "q_proj"),
        model.ternary(1, "q_proj"),
        model.ternary(0, "k_proj"),
    ):
        assert not np.array_equal(codes, different.codes)
    assert not np.array_equal(model.embedding(slice(9)), other.embedding(slice(9)))
    assert not np.array_equal(model.norm("layers.0.input_norm"), model.norm("layers.1.input_norm"))


@pytest.mark.parametrize("module", MODULES)
def test_codes_are_ternary_and_balanced(module: str) -> None:
    weight = RandomCheckpoint(SMALL).ternary(0, module)
    assert weight.codes.dtype == np.int8
    assert weight.codes.shape == SMALL.module_shape(module)
    values, counts = np.unique(weight.codes, return_counts=True)
    assert values.tolist() == [-1, 0, 1]
    np.testing.assert_allclose(counts / weight.codes.size, 1 / 3, atol=0.01)
    assert weight.scale == np.float32(weight.scale) > 0


def test_embedding_is_the_same_however_it_is_sliced() -> None:
    model = RandomCheckpoint(SMALL)
    whole = model.embedding()
    assert whole.shape == (5000, 768)
    assert np.array_equal(model.embedding(slice(1000, 4500)), whole[1000:4500])
    assert model.embedding(slice(7, 7)).shape == (0, 768)
    assert np.array_equal(model.head(slice(30)), whole[:30])


def test_a_separate_head_is_another_table() -> None:
    model = RandomCheckpoint(replace(SMALL, tied_head=False))
    assert not np.array_equal(model.head(slice(30)), model.embedding(slice(30)))


def test_activations_stay_sane_through_depth() -> None:
    """The loss of a model that knows nothing is that of a guess among the vocabulary."""
    config = replace(SMALL, num_layers=8, hidden_size=192, intermediate_size=384, head_dim=16)
    reference = TorchBitNet(RandomCheckpoint(config))
    tokens = np.random.default_rng(0).integers(0, 5000, (1, 65))
    loss = reference.loss(tokens[:, :-1], tokens[:, 1:]).item() / 64
    assert loss == pytest.approx(math.log(5000), abs=0.2)


def test_13b_opens_and_reads_one_matrix_in_the_memory_of_one_matrix() -> None:
    tracemalloc.start()
    try:
        model = open_model("random:13B")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        rows, columns = model.config.module_shape("k_proj")
        model.ternary(39, "k_proj")
        assert tracemalloc.get_traced_memory()[1] < 3.1 * rows * columns
    finally:
        tracemalloc.stop()


def test_names_choose_size_and_seed() -> None:
    model = open_model("random:1b:seed=3")
    assert isinstance(model, RandomCheckpoint)
    assert (model.seed, model.name, model.config) == (3, "random:1b:seed=3", SHAPES["1B"])
    assert model.tokenizer_files == {}


@pytest.mark.parametrize("name", ["random:8B", "random:", "random:1B:seed=x", "random:1B:layers=2"])
def test_unknown_sizes_and_options_are_refused(name: str) -> None:
    with pytest.raises(FabricError, match="random:"):
        open_model(name)
