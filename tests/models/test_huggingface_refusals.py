"""What cannot be computed exactly is refused with the file, tensor or option named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitfabric.models import MODULES, CheckpointError, open_model
from bitfabric.targets import FabricError
from torch import Tensor

from ..reference.folders import (
    AUTOBITLINEAR,
    BITLINEAR,
    ONLINE,
    masters,
    packed,
    write_folder,
    write_shards,
)

GATE = "model.layers.1.mlp.gate_proj.weight"


def read_all(folder: Path) -> None:
    model = open_model(str(folder))
    for layer in range(model.config.num_layers):
        for module in MODULES:
            model.ternary(layer, module)
    for name in model.config.norm_shapes():
        model.norm(name)
    model.embedding()
    model.head()


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as raised:
        read_all(folder)
    assert raised.value.cause.endswith(".")
    assert raised.value.remedy.endswith(".")
    return raised.value


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"weight_bits": 2}, "weight_bits"),
        ({"input_bits": 4}, "input_bits"),
        ({"quantization_config": {**ONLINE, "linear_class": "bitnet"}}, "class 'bitnet'"),
        ({"quantization_config": {**ONLINE, "use_rms_norm": True}}, "use_rms_norm"),
        (
            {"quantization_config": {**ONLINE, "modules_to_not_convert": ["model.layers.0.mlp"]}},
            "modules_to_not_convert",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": None, "model_type": "mamba"}, "mamba"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM is a BitNet"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"vocab_size": 51}, r"embed_tokens.weight has the shape \[50, 64\], not \[51, 64\]"),
        ({"intermediate_size": 100}, "gate_proj"),
        ({"num_hidden_layers": 3}, "lacks tensors: model.layers.2"),
        ({"num_hidden_layers": 1}, "without these tensors: model.layers.1.* and 8 more"),
        ({"tie_word_embeddings": False}, "lacks tensors: lm_head.weight"),
    ],
)
def test_configuration(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"), **changes)
    with pytest.raises(CheckpointError, match=named):
        read_all(folder)


def test_contradicting_numbers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"), num_key_value_heads=3)
    with pytest.raises(FabricError, match="4 attention heads cannot share 3"):
        open_model(str(folder))


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return change


def put(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: value(tensors[name])})


def spoil(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        spoilt = tensor.clone()
        spoilt.view(-1)[5] = value
        return spoilt

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop("model.norm.weight"), "lacks tensors: model.norm.weight"),
        (drop(GATE), f"lacks tensors: {GATE}"),
        (put(GATE, torch.zeros_like), f"{GATE} is zero throughout"),
        (put(GATE, spoil(float("nan"))), f"{GATE} holds NaN or infinity"),
        (put(GATE, spoil(float("inf"))), f"{GATE} holds NaN or infinity"),
        (put("model.norm.weight", spoil(float("inf"))), "model.norm.weight holds NaN or infinity"),
        (
            put("model.embed_tokens.weight", spoil(float("-inf"))),
            "embed_tokens.weight holds NaN or infinity",
        ),
        (put(GATE, lambda t: t.T), rf"{GATE} has the shape \[64, 96\], not \[96, 64\]"),
        (put(GATE, lambda t: t.to(torch.float8_e4m3fn)), f"{GATE} is stored as F8_E4M3"),
        (put("model.norm.weight", Tensor.int), "model.norm.weight is stored as I32"),
        (
            lambda tensors: tensors.update({GATE.replace("weight", "bias"): torch.zeros(96)}),
            "without these tensors: .*gate_proj.bias",
        ),
    ],
)
def test_masters(tmp_path: Path, change: Callable[[dict[str, Tensor]], None], named: str) -> None:
    tensors = masters("bitnet")
    change(tensors)
    with pytest.raises(CheckpointError, match=named):
        read_all(write_folder(tmp_path / "m", "bitnet", tensors))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop(f"{GATE}_scale"), f"lacks tensors: {GATE}_scale"),
        # The bytes of four zero codes: the tensors of the broken revision of 2B-4T.
        (put(GATE, lambda t: torch.full_like(t, 0b01010101)), f"{GATE} is zero throughout"),
        (put(GATE, lambda t: torch.full_like(t, 0b11000000)), f"{GATE} is declared ternary"),
        (put(f"{GATE}_scale", torch.zeros_like), f"{GATE}_scale is 0.0"),
        (put(f"{GATE}_scale", lambda t: -t), f"{GATE}_scale is -"),
        (put(f"{GATE}_scale", lambda t: t * torch.nan), f"{GATE}_scale holds NaN"),
        (put(f"{GATE}_scale", lambda t: t.repeat(96)), f"{GATE}_scale holds 96 scales"),
        (put(GATE, lambda t: t[1:]), rf"{GATE} has the shape \[92, 64\], not \[96, 64\]"),
        (put(GATE, lambda t: torch.ones(96, 64)), None),
        (put(GATE, lambda t: torch.full((96, 64), 0.5)), f"{GATE} is declared ternary"),
    ],
)
@pytest.mark.parametrize("inverted", [False, True])
def test_packed(
    tmp_path: Path,
    inverted: bool,
    change: Callable[[dict[str, Tensor]], None],
    named: str | None,
) -> None:
    tensors = packed(masters("bitnet"), inverted)
    change(tensors)
    quantization = BITLINEAR if inverted else AUTOBITLINEAR
    folder = write_folder(tmp_path / "m", "bitnet", tensors, quantization)
    if named is None:
        return read_all(folder)
    with pytest.raises(CheckpointError, match=named):
        read_all(folder)


def test_packed_without_a_word_on_its_scale(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", packed(masters("bitnet"), False))
    assert "has no quantization_config" in refusal(folder).cause


def test_an_ordinary_llama_says_how_to_declare_masters(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "llama", masters("llama"))
    assert '"quantization_mode": "online"' in refusal(folder).remedy


def test_truncated_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors is damaged" in refusal(folder).cause


@pytest.mark.parametrize("content", [b"", b"version https", b"\xff" * 64])
def test_file_that_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"))
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors is damaged" in refusal(folder).cause


def test_missing_shard(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "m", "bitnet", masters("bitnet"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "has no file model-00002-of-00002.safetensors" in refusal(folder).cause


def test_weights_in_another_format(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has no file model.safetensors" in refusal(folder).cause


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_damaged_config(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"))
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder).cause


def test_sentencepiece_tokenizer(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"))
    (folder / "tokenizer.model").write_bytes(b"\n\x0e")
    assert "save_pretrained" in refusal(folder).remedy


def test_damaged_tokenizer(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"})[:-4])
    assert "tokenizer.json is not JSON" in refusal(folder).cause


def test_no_such_model(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "absent").cause
    assert "has no config.json" in refusal(tmp_path).cause
