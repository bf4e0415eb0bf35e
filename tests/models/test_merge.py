"""Merged models: exact as ordinary matrices, measured as ternary, loaded by transformers and us."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.models import MODULES, CheckpointError, ModelConfig, RandomCheckpoint, open_model
from bitfabric.models.huggingface_writer import (
    storable_scale,
    storage,
    write_plain,
    write_ternary,
)
from bitfabric.models.merge import (
    MergedTernary,
    merged_matrix,
    requantise,
    updates_of,
)
from bitfabric.targets import FabricError

from ..reference import folders
from ..reference.torch_bitnet import TorchBitNet, module_path, random_adapter

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SCALE = 1.5


def factors(
    config: ModelConfig, modules: Sequence[str] = MODULES, size: float = 1.0
) -> dict[tuple[int, str], Any]:
    adapter = random_adapter(config, 3, modules)
    return {
        (layer, module): (
            adapter[f"{module_path(layer, module)}.lora_A"],
            np.float32(size) * adapter[f"{module_path(layer, module)}.lora_B"],
        )
        for layer in range(config.num_layers)
        for module in modules
    }


@pytest.fixture(scope="module", params=["bitnet", "1bitllm", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny packed model of each family, with a tokenizer's files."""
    folder = tmp_path_factory.mktemp(request.param) / "base"
    tensors = folders.packed(folders.masters(request.param, torch.float16), inverted=False)
    folders.write_folder(folder, request.param, tensors, folders.AUTOBITLINEAR)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "X"}')
    return open_model(str(folder))


def tokens_of(config: ModelConfig) -> np.ndarray:
    return np.random.default_rng(0).integers(config.vocab_size, size=(3, 9)).astype(np.int32)


def plain(model: Any, updates: Any) -> Any:
    return partial(merged_matrix, model, updates)


class Matrices:
    """Linear layers in torch as ordinary matrices in float64, whatever the model says."""

    def __init__(self, model: Any, updates: Any) -> None:
        self.reference = TorchBitNet(model, dtype=torch.float64)
        matrices = {}
        for (layer, module), (codes, scale) in self.reference.linears.items():
            matrices[layer, module] = codes * scale
            for a, b, factor in updates.get((layer, module), ()):
                matrices[layer, module] += (
                    factor * torch.tensor(b).double() @ torch.tensor(a).double()
                )
        self.reference._linear = lambda layer, module, x: x @ matrices[layer, module].T

    def logits(self, tokens: Any) -> Any:
        return self.reference.logits(tokens).detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 2e-5), ("F16", 2e-2)])
def test_transformers_computes_the_exact_sum_from_a_plain_folder(
    model: Any, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    updates = updates_of(
        [(factors(model.config), SCALE), (factors(model.config, ["o_proj"]), -0.5)]
    )
    write_plain(model, plain(model, updates), tmp_path / "merged", dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    tokens = tokens_of(model.config)
    with torch.no_grad():
        actual = theirs(torch.tensor(tokens).long()).logits
    expected = Matrices(model, updates).logits(tokens)
    spread = expected.std().item()
    assert (actual - expected).abs().max().item() < tolerance * max(spread, 1.0)
    # Without the adapters it is another model: the tolerance means something.
    bare = Matrices(model, {}).logits(tokens)
    assert (bare - expected).abs().max().item() > 10 * tolerance * max(spread, 1.0)


def test_fabric_says_why_it_cannot_compile_a_plain_folder(model: Any, tmp_path: Path) -> None:
    write_plain(model, plain(model, {}), tmp_path / "merged", "F16")
    with pytest.raises(CheckpointError, match="merged into floating point") as caught:
        open_model(str(tmp_path / "merged"))
    assert "--to ternary" in caught.value.remedy


def test_a_ternary_folder_is_what_was_measured_for_us_and_for_transformers(
    model: Any, tmp_path: Path
) -> None:
    updates = updates_of([(factors(model.config, size=2.0), SCALE)])
    dtype = storage(model)
    assert dtype == "F16"
    merged = MergedTernary(model, updates, storable_scale(dtype))
    write_ternary(merged, tmp_path / "merged", dtype)
    read = open_model(str(tmp_path / "merged"))
    for layer in range(model.config.num_layers):
        for module in MODULES:
            ours, theirs = merged.ternary(layer, module), read.ternary(layer, module)
            np.testing.assert_array_equal(ours.codes, theirs.codes)
            assert ours.scale == theirs.scale
    assert merged.changed_share > 0.01
    for name in model.config.norm_shapes():
        np.testing.assert_array_equal(read.norm(name), model.norm(name))
    np.testing.assert_array_equal(read.head(), model.head())
    # transformers reads the same weights; its own rounding of activations differs a little.
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    layer = loaded.model.layers[1].mlp.down_proj
    expected = merged.ternary(1, "down_proj")
    np.testing.assert_array_equal(layer.weight.detach().float().numpy(), expected.codes)
    assert layer.weight_scale.item() == expected.scale
    assert (tmp_path / "merged" / "tokenizer_config.json").read_text() == '{"tokenizer_class": "X"}'


def test_requantising_finds_the_nearest_ternary_matrix() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(-1, 2, (40, 60)).astype(np.int8)
    noisy = np.float32(0.3) * codes + generator.normal(size=codes.shape).astype(np.float32) * 0.02
    found = requantise(noisy, 0.31)
    np.testing.assert_array_equal(found.codes, codes)
    assert found.scale == pytest.approx(0.3, rel=0.01)

    def error(codes: Any, scale: float) -> float:
        return float(np.square(noisy - scale * codes).sum())

    for other in (0.9, 0.97, 1.03, 1.1):
        assert error(found.codes, found.scale) < error(found.codes, found.scale * other)


def test_a_small_adapter_is_lost_in_rounding_and_a_large_one_is_not(model: Any) -> None:
    shares = {}
    for size in (1e-3, 6.0):
        merged = MergedTernary(model, updates_of([(factors(model.config, size=size), SCALE)]))
        for module in MODULES:
            merged.ternary(0, module)
        shares[size] = merged.changed_share
    assert shares[1e-3] < 0.01
    assert shares[6.0] > 0.05


def test_the_sum_is_that_of_all_adapters_with_their_weights(model: Any) -> None:
    one, two = factors(model.config, ["v_proj"]), factors(model.config, ["v_proj", "up_proj"])
    updates = updates_of([(one, 2.0), (two, -0.5)])
    weight = model.ternary(1, "v_proj")
    expected = weight.scale * weight.codes.astype(np.float64)
    for pair, scale in ((one, 2.0), (two, -0.5)):
        a, b = pair[1, "v_proj"]
        expected += scale * b.astype(np.float64) @ a
    np.testing.assert_allclose(merged_matrix(model, updates, 1, "v_proj"), expected, atol=1e-6)
    assert (0, "q_proj") not in updates


def test_the_folder_is_whole_or_not_there(model: Any, tmp_path: Path) -> None:
    def stops(layer: int, module: str) -> Any:
        if layer == 1:
            raise KeyboardInterrupt
        return merged_matrix(model, {}, layer, module)

    with pytest.raises(KeyboardInterrupt):
        write_plain(model, stops, tmp_path / "merged", "F16")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(FabricError, match="exists"):
        write_plain(model, plain(model, {}), tmp_path / "mine", "F16")


def test_values_beyond_float16_are_refused(tmp_path: Path, model: Any) -> None:
    updates = updates_of([(factors(model.config, ["q_proj"]), 1e7)])
    with pytest.raises(FabricError, match=r"q_proj.* beyond the range of float16") as caught:
        write_plain(model, plain(model, updates), tmp_path / "merged", "F16")
    assert "--to f32" in caught.value.remedy


def test_storage_is_the_smallest_that_is_exact(tmp_path: Path) -> None:
    for dtype, expected in ((torch.bfloat16, "BF16"), (torch.float32, "F32")):
        tensors = folders.masters("bitnet", dtype)
        tensors["model.norm.weight"] *= 2.0**20  # Beyond float16.
        path = folders.write_folder(tmp_path / expected, "bitnet", tensors)
        assert storage(open_model(str(path))) == expected
    rounded = storable_scale("BF16")(0.123456)
    assert rounded == torch.tensor(0.123456).bfloat16().item()


def test_a_random_model_can_be_written_too(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(
        {
            **open_model("nano").config.to_dict(),
            "family": "random",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
            "vocab_size": 40,
        }
    )
    made = MergedTernary(RandomCheckpoint(config, seed=1, name="tiny"), {})
    write_ternary(made, tmp_path / "merged", "F32")
    read = open_model(str(tmp_path / "merged"))
    assert read.config.num_layers == 1
    np.testing.assert_array_equal(
        read.ternary(0, "up_proj").codes, made.ternary(0, "up_proj").codes
    )
