"""Hugging Face folders of every family and storage give the codes, scales and tables they hold."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitfabric.models import MODULES, Checkpoint, open_model
from bitfabric.models.huggingface import HuggingFaceCheckpoint

from ..reference.folders import (
    AUTOBITLINEAR,
    BITLINEAR,
    FAMILIES,
    ONLINE,
    SUB_NORMS,
    masters,
    packed,
    write_folder,
    write_shards,
)
from ..reference.torch_bitnet import module_path

FAMILY_NAMES = list(FAMILIES)


def write(folder: Path, family: str, storage: str, dtype: torch.dtype) -> Path:
    tensors = masters(family, dtype)
    if storage == "masters":
        return write_folder(folder, family, tensors, ONLINE)
    inverted = storage == "bitlinear"
    return write_folder(
        folder, family, packed(tensors, inverted), BITLINEAR if inverted else AUTOBITLINEAR
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("storage", ["masters", "autobitlinear", "bitlinear"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_matrix_is_the_quantised_master(
    tmp_path: Path, family: str, storage: str, dtype: torch.dtype
) -> None:
    model = open_model(str(write(tmp_path / "m", family, storage, dtype)))
    tensors = masters(family, dtype)
    for layer in range(2):
        for module in MODULES:
            master = tensors[f"{module_path(layer, module)}.weight"].float()
            scale = master.abs().mean()
            weight = model.ternary(layer, module)
            assert np.array_equal(weight.codes, (master / scale).round().clamp(-1, 1).numpy())
            # A stored scale has been through the checkpoint's dtype.
            tolerance = 1e-6 if storage == "masters" else torch.finfo(dtype).eps
            assert weight.scale == pytest.approx(scale.item(), rel=tolerance)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_norms_and_tables(tmp_path: Path, family: str) -> None:
    model = open_model(str(write(tmp_path / "m", family, "masters", torch.bfloat16)))
    tensors = masters(family)
    attention_sub_norm, ffn_sub_norm = SUB_NORMS[family]
    names = {"final_norm": "model.norm"}
    for layer in range(2):
        names[f"layers.{layer}.input_norm"] = f"model.layers.{layer}.input_layernorm"
        names[f"layers.{layer}.post_attention_norm"] = (
            f"model.layers.{layer}.post_attention_layernorm"
        )
        if attention_sub_norm:
            names[f"layers.{layer}.attention_sub_norm"] = (
                f"model.layers.{layer}.{attention_sub_norm}"
            )
            names[f"layers.{layer}.ffn_sub_norm"] = f"model.layers.{layer}.{ffn_sub_norm}"
    assert names.keys() == model.config.norm_shapes().keys()
    for name, tensor in names.items():
        norm = model.norm(name)
        assert norm.dtype == np.float32
        assert np.array_equal(norm, tensors[f"{tensor}.weight"].float())
    embedding = tensors["model.embed_tokens.weight"].float()
    head = tensors.get("lm_head.weight", embedding).float()
    assert np.array_equal(model.embedding(), embedding)
    assert np.array_equal(model.embedding(slice(10, 20)), embedding[10:20])
    assert np.array_equal(model.head(), head)
    assert np.array_equal(model.head(slice(10, 20)), head[10:20])


def test_float16_tables_stay_float16(tmp_path: Path) -> None:
    model = open_model(str(write(tmp_path / "m", "bitnet", "masters", torch.float16)))
    assert model.embedding().dtype == np.float16
    assert model.norm("final_norm").dtype == np.float32


def test_ternary_weights_in_floating_point(tmp_path: Path) -> None:
    """An offline AutoBitLinear that was never packed: codes as floats beside their scale."""
    tensors = masters("bitnet")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].float().abs().mean()
        tensors[name] = (tensors[name].float() / scale).round().clamp(-1, 1).to(torch.bfloat16)
        tensors[f"{name}_scale"] = scale.reshape(1)
    model = open_model(str(write_folder(tmp_path / "m", "bitnet", tensors, AUTOBITLINEAR)))
    name = "model.layers.0.mlp.up_proj.weight"
    weight = model.ternary(0, "up_proj")
    assert np.array_equal(weight.codes, tensors[name].float())
    assert weight.scale == tensors[f"{name}_scale"].item()


def test_rows_of_a_table_are_read_in_the_memory_of_the_rows(tmp_path: Path) -> None:
    tensors = masters("bitnet")
    tensors["model.embed_tokens.weight"] = torch.ones(100_000, 64).bfloat16()
    folder = write_folder(tmp_path / "m", "bitnet", tensors, vocab_size=100_000)
    tracemalloc.start()
    try:
        rows = open_model(str(folder)).embedding(slice(50_000, 50_100))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert rows.shape == (100, 64)


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    single = open_model(str(write_folder(tmp_path / "one", "bitnet", masters("bitnet"))))
    shards = open_model(str(write_shards(tmp_path / "two", "bitnet", masters("bitnet"))))
    assert np.array_equal(shards.embedding(), single.embedding())
    for layer in range(2):
        for module in MODULES:
            codes = single.ternary(layer, module).codes
            assert np.array_equal(shards.ternary(layer, module).codes, codes)


def test_architectures_of_the_families(tmp_path: Path) -> None:
    configs = {
        family: open_model(str(write(tmp_path / family, family, "masters", torch.float32))).config
        for family in FAMILY_NAMES
    }
    bitnet, one_bit, llama = (configs[family] for family in FAMILY_NAMES)
    assert [config.family for config in configs.values()] == FAMILY_NAMES
    assert (bitnet.activation, one_bit.activation, llama.activation) == ("relu2", "silu", "silu")
    assert (bitnet.rope_theta, one_bit.rope_theta, llama.rope_theta) == (5e5, 1e4, 1000042.0)
    assert (bitnet.head_dim, llama.head_dim, llama.attention_size) == (16, 32, 128)
    sub_norms = [(config.attention_sub_norm, config.ffn_sub_norm) for config in configs.values()]
    assert sub_norms == [(True, True), (True, True), (False, False)]
    assert (bitnet.tied_head, llama.tied_head) == (True, False)
    assert (bitnet.num_kv_heads, bitnet.max_context, bitnet.bos_token_id) == (2, 128, 1)


def test_what_config_json_leaves_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"))
    config = json.loads((folder / "config.json").read_text())
    for key in ("architectures", "rope_theta", "hidden_act", "rms_norm_eps", "bos_token_id"):
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    read = open_model(str(folder)).config
    assert (read.family, read.activation) == ("bitnet", "relu2")
    assert (read.rope_theta, read.rms_norm_eps, read.bos_token_id) == (500000.0, 1e-5, None)


def test_config_as_transformers_writes_it_today(tmp_path: Path) -> None:
    import transformers

    config = transformers.BitNetConfig(
        **{k: v for k, v in FAMILIES["bitnet"].items() if k not in ("architectures", "rope_theta")},
        rope_parameters={"rope_type": "default", "rope_theta": 12345.0},
    )
    transformers.BitNetForCausalLM(config).save_pretrained(tmp_path)
    read = open_model(str(tmp_path)).config
    assert (read.rope_theta, read.num_kv_heads, read.tied_head) == (12345.0, 2, True)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [({"eos_token_id": [7, 9]}, (7, 9)), ({"eos_token_id": 7}, (7,)), ({}, (2,))],
)
def test_generation_ends_where_generation_config_says(
    tmp_path: Path, generation: dict[str, Any], expected: tuple[int, ...]
) -> None:
    folder = write_folder(tmp_path / "m", "bitnet", masters("bitnet"))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    assert open_model(str(folder)).config.eos_token_ids == expected


def with_tokenizer(folder: Path, settings: dict[str, Any]) -> Checkpoint:
    write_folder(folder, "bitnet", masters("bitnet"))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return open_model(str(folder))


def test_tokenizer_template_and_special_tokens(tmp_path: Path) -> None:
    settings = {"chat_template": "{{ x }}", "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    files = with_tokenizer(tmp_path / "m", settings).tokenizer_files
    assert files["tokenizer.json"] == b'{"version": "1.0"}'
    assert files["chat_template.jinja"] == b"{{ x }}"
    assert json.loads(files["special_tokens.json"]) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_of_several_templates_the_default_one_and_a_file_above_all(tmp_path: Path) -> None:
    templates = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    files = with_tokenizer(tmp_path / "m", {"chat_template": templates}).tokenizer_files
    assert files["chat_template.jinja"] == b"d"
    (tmp_path / "m" / "chat_template.jinja").write_text("file")
    files = open_model(str(tmp_path / "m")).tokenizer_files
    assert files["chat_template.jinja"] == b"file"


def test_a_folder_is_called_by_its_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "my-bitnet", "bitnet", masters("bitnet"))
    model = open_model(str(folder))
    assert isinstance(model, HuggingFaceCheckpoint)
    assert (model.name, model.folder, model.tokenizer_files) == ("my-bitnet", folder, {})
