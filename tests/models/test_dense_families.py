"""Dense checkpoints: their configuration, old and new, their weights as stored, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitfabric.models import CheckpointError, RandomCheckpoint, open_model
from bitfabric.models.families import find_family
from bitfabric.models.huggingface_config import model_config
from bitfabric.models.random_weights import SHAPES
from safetensors.torch import save_file

# config.json of google/gemma-3-1b-it as it is published, what silence means left out.
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def _read(values: dict[str, Any]) -> Any:
    return model_config(find_family(values), values, {})


def test_the_published_gemma_has_the_shape_of_the_random_one() -> None:
    found, wanted = _read(GEMMA).to_dict(), SHAPES["gemma3-1b"].to_dict()
    assert {**found, "family": "random"} == wanted
    assert SHAPES["gemma3-1b"].parameters == 999_885_952


def test_newer_files_say_the_same_in_other_words() -> None:
    newer = {k: v for k, v in GEMMA.items() if not k.startswith(("rope", "sliding_window_"))}
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(26)]
    newer["rope_parameters"] = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert _read({**newer, "layer_types": kinds}) == _read(GEMMA)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"query_pre_attn_scalar": 128}, "query_pre_attn_scalar"),
        ({"final_logit_softcapping": 30.0}, "softcapping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "'linear'"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], cause: str) -> None:
    with pytest.raises(CheckpointError, match=cause):
        _read({**GEMMA, **change})


def _folder(path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write a tiny model of the family."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 40}
    values = {**GEMMA, **sizes, "head_dim": 16, "query_pre_attn_scalar": 16}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(*shape, generator=generator).bfloat16()
        for name, shape in find_family(values).tensor_shapes(_read(values)).items()
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(values))
    save_file(tensors, path / "model.safetensors")
    return path, tensors


def test_weights_are_as_stored_and_norms_count_from_one(tmp_path: Path) -> None:
    folder, tensors = _folder(tmp_path / "gemma")
    assert len(tensors) == 15
    assert "model.layers.0.pre_feedforward_layernorm.weight" in tensors
    model = open_model(str(folder))
    stored = tensors["model.layers.0.self_attn.k_proj.weight"].float().numpy()
    np.testing.assert_array_equal(model.dense(0, "k_proj"), stored)
    for name, tensor in (
        ("layers.0.query_norm", "model.layers.0.self_attn.q_norm.weight"),
        ("layers.0.attention_output_norm", "model.layers.0.post_attention_layernorm.weight"),
        ("layers.0.ffn_output_norm", "model.layers.0.post_feedforward_layernorm.weight"),
        ("layers.0.post_attention_norm", "model.layers.0.pre_feedforward_layernorm.weight"),
        ("final_norm", "model.norm.weight"),
    ):
        np.testing.assert_array_equal(model.norm(name), 1 + tensors[tensor].float().numpy())
    with pytest.raises(CheckpointError, match="not ternary"):
        model.ternary(0, "k_proj")


def test_random_dense_models_are_the_same_every_time_and_no_matrix_is_another() -> None:
    config = SHAPES["qwen3-0.6b"]
    one, other = RandomCheckpoint(config, 1), RandomCheckpoint(config, 1)
    key = one.dense(3, "k_proj")
    assert (key.dtype, key.shape) == (np.float16, (1024, 1024))
    np.testing.assert_array_equal(key, other.dense(3, "k_proj"))
    assert not np.array_equal(key, one.dense(3, "v_proj"))
    with pytest.raises(CheckpointError, match="are ternary"):
        RandomCheckpoint(SHAPES["125M"]).dense(0, "k_proj")
