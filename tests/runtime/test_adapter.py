"""Adapters are PEFT's, both ways, and what does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.runtime.adapter import (
    AdapterError,
    adapter_shapes,
    load_adapter,
    save_adapter,
    split_weight,
)
from bitfabric.runtime.files import FileError

from .toy import HIDDEN, ToyBundle

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")


def lora(**changes: Any) -> dict[str, Any]:
    modules = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"]
    return {**ToyBundle().lora, "modules": modules, **changes}


def random_tensors(bundle: ToyBundle, rank: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = adapter_shapes(bundle, rank)
    return {name: generator.normal(size=s).astype(np.float32) for name, s in shapes.items()}


def skeleton() -> Any:
    """A model with the projections of the toy's configuration, by the names PEFT will see."""
    torch.manual_seed(0)
    sizes = {
        "self_attn": {"q_proj": (24, 24), "k_proj": (24, 8), "v_proj": (24, 8), "o_proj": (24, 24)},
        "mlp": {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)},
    }
    layer = torch.nn.ModuleDict(
        {
            part: torch.nn.ModuleDict({n: torch.nn.Linear(*s, bias=False) for n, s in m.items()})
            for part, m in sizes.items()
        }
    )
    model = torch.nn.Module()
    model.prepare_inputs_for_generation = None  # PEFT looks for it in a language model.
    model.model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})
    return model


def projection(model: Any, name: str) -> Any:
    """`model.layers.0.self_attn.q_proj` of a model or of PEFT's wrapped one."""
    root = model.base_model.model if hasattr(model, "base_model") else model
    return root.get_submodule(name)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_loads_what_we_save_and_computes_the_same(tmp_path: Path, rslora: bool) -> None:
    bundle = dataclasses.replace(ToyBundle(), lora=lora(rslora=rslora, dropout=0.0))
    tensors = random_tensors(bundle, 4)
    save_adapter(tmp_path, tensors, bundle, {"step": 1})
    plain = skeleton()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped = peft.PeftModel.from_pretrained(skeleton(), tmp_path)
    adapter = load_adapter(str(tmp_path), bundle)
    assert adapter.scale == pytest.approx(8 / 2 if rslora else 8 / 4)
    names = {name.rpartition(".")[0] for name in tensors}
    assert len(names) == 5
    for name in names:
        x = torch.randn(3, projection(plain, name).in_features)
        a, b = (torch.tensor(adapter.tensors[f"{name}.lora_{factor}"]) for factor in "AB")
        expected = projection(plain, name)(x) + adapter.scale * x @ a.T @ b.T
        actual = projection(wrapped, name)(x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_we_load_what_peft_saves(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    wrapped = peft.get_peft_model(skeleton(), config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(tmp_path)
    adapter = load_adapter(str(tmp_path), dataclasses.replace(ToyBundle(), lora=lora()))
    assert (adapter.rank, adapter.scale) == (2, 3.0)
    saved = peft.load_peft_weights(tmp_path)
    for key, tensor in saved.items():
        name = key.removeprefix("base_model.model.").removesuffix(".weight")
        np.testing.assert_array_equal(adapter.tensors[name], tensor.numpy())
    # What the adapter does not change is zero.
    assert not adapter.tensors["model.layers.0.self_attn.k_proj.lora_A"].any()
    assert len(adapter.tensors) == 10


def test_a_smaller_rank_fits_and_computes_the_same(tmp_path: Path) -> None:
    small = dataclasses.replace(ToyBundle(), lora=lora(rank=2, alpha=6.0))
    save_adapter(tmp_path, random_tensors(small, 2), small, {})
    bundle = dataclasses.replace(ToyBundle(), lora=lora())
    adapter = load_adapter(f"{tmp_path}:0.5", bundle)
    fitted = adapter.fitted(bundle)
    for name, shape in adapter_shapes(bundle, 4).items():
        assert fitted[name].shape == shape
    name = "model.layers.0.self_attn.q_proj"
    change = fitted[f"{name}.lora_B"] @ fitted[f"{name}.lora_A"] * bundle.lora["scale"]
    expected = adapter.tensors[f"{name}.lora_B"] @ adapter.tensors[f"{name}.lora_A"] * (0.5 * 3)
    np.testing.assert_allclose(change, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(AdapterError, match="has rank 2, and the bundle was compiled for 1"):
        adapter.fitted(dataclasses.replace(ToyBundle(), lora=lora(rank=1)))


def test_an_adapter_for_other_modules_or_shapes_is_refused(tmp_path: Path) -> None:
    bundle = dataclasses.replace(ToyBundle(), lora=lora())
    save_adapter(tmp_path, random_tensors(bundle, 4), bundle, {})
    fewer = dataclasses.replace(bundle, lora=lora(modules=["q_proj"]))
    with pytest.raises(AdapterError, match="no place for") as caught:
        load_adapter(str(tmp_path), fewer)
    assert "--lora-modules" in caught.value.remedy
    wider = dataclasses.replace(bundle, config={**bundle.config, "hidden_size": HIDDEN + 8})
    with pytest.raises(
        AdapterError, match=r"down_proj.lora_B in .* has the shape \[24, 4\].*needs \[32, 4\]"
    ):
        load_adapter(str(tmp_path), wider)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "no LoRA adapter"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"rank_pattern": {"q_proj": 3}}, "rank of its own"),
        ({"r": None}, "no rank"),
        ({"lora_alpha": "much"}, "lora_alpha as 'much'"),
        ({"fan_in_fan_out": True}, "transposed"),
    ],
)
def test_what_we_cannot_apply_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    bundle = dataclasses.replace(ToyBundle(), lora=lora())
    save_adapter(tmp_path, random_tensors(bundle, 4), bundle, {})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AdapterError, match=words):
        load_adapter(str(tmp_path), bundle)


def test_a_folder_may_carry_a_weight(tmp_path: Path) -> None:
    for name in ("plain", "with:colon", "odd:0.5"):
        save_adapter(tmp_path / name, {}, ToyBundle(), {})
    assert split_weight(f"{tmp_path}/plain") == (tmp_path / "plain", 1.0)
    assert split_weight(f"{tmp_path}/plain/:-0.5") == (tmp_path / "plain", -0.5)
    assert split_weight(f"{tmp_path}/with:colon:2") == (tmp_path / "with:colon", 2.0)
    assert split_weight(f"{tmp_path}/odd:0.5") == (tmp_path / "odd:0.5", 1.0)
    with pytest.raises(AdapterError, match="There is no adapter in"):
        split_weight(f"{tmp_path}/none:0.5")
    with pytest.raises(AdapterError, match="no weight"):
        split_weight(f"{tmp_path}/plain:nan")


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    bundle = dataclasses.replace(ToyBundle(), lora=lora())
    save_adapter(tmp_path, random_tensors(bundle, 4), bundle, {})
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not valid JSON"):
        load_adapter(str(tmp_path), bundle)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileError, match="could not be read"):
        load_adapter(str(tmp_path), bundle)
