"""Tiny Hugging Face folders of every kind that fabric reads, written as their makers write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bitnet": {
        **BASE,
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_act": "relu2",
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    "1bitllm": {
        **BASE,
        "architectures": ["BitnetForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "weight_bits": 1,
        "input_bits": 8,
    },
    "llama": {
        **BASE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "head_dim": 32,
        "rope_theta": 1000042.0,
        "tie_word_embeddings": False,
    },
}
SUB_NORMS = {
    "bitnet": ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
    "1bitllm": ("self_attn.inner_attn_ln", "mlp.ffn_layernorm"),
    "llama": (None, None),
}
ONLINE = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "online",
}
AUTOBITLINEAR = {**ONLINE, "quantization_mode": "offline"}
# As the Falcon models have it: the older class is the one that goes without saying.
BITLINEAR = {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}


def masters(family: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, Tensor]:
    """Give all tensors of a tiny model, matrices normal, norms near one."""
    config = FAMILIES[family]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden, ffn, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    attention = config["num_attention_heads"] * head_dim
    kv = config["num_key_value_heads"] * head_dim
    tensors = {"model.embed_tokens.weight": 0.25 * normal(vocab, hidden)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = 0.1 * normal(vocab, hidden)
    norms = {"model.norm": hidden}
    attention_sub_norm, ffn_sub_norm = SUB_NORMS[family]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, shape in {
            "self_attn.q_proj": (attention, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, attention),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }.items():
            tensors[f"{prefix}.{name}.weight"] = normal(*shape) / shape[1] ** 0.5
        norms[f"{prefix}.input_layernorm"] = norms[f"{prefix}.post_attention_layernorm"] = hidden
        if attention_sub_norm:
            norms[f"{prefix}.{attention_sub_norm}"] = attention
            norms[f"{prefix}.{ffn_sub_norm}"] = ffn
    for name, size in norms.items():
        tensors[f"{name}.weight"] = 1 + 0.1 * normal(size)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def is_matrix(name: str) -> bool:
    """Tell whether a tensor is the weight of a BitLinear."""
    return name.endswith("_proj.weight")


def packed(tensors: Mapping[str, Tensor], inverted: bool) -> dict[str, Tensor]:
    """Quantise and pack every BitLinear; older files hold its scale inverted."""
    result = {}
    for name, tensor in tensors.items():
        if not is_matrix(name):
            result[name] = tensor
            continue
        scale = tensor.float().abs().mean()
        codes = (tensor.float() / scale).round().clamp(-1, 1)
        quarters = (codes + 1).to(torch.uint8).chunk(4)
        result[name] = torch.stack([q << 2 * i for i, q in enumerate(quarters)]).sum(0).byte()
        stored = 1 / scale if inverted else scale
        result[f"{name}_scale"] = stored.reshape(1).to(tensor.dtype)
    return result


def write_folder(
    folder: Path,
    family: str,
    tensors: Mapping[str, Tensor],
    quantization: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write config.json and model.safetensors; `changes` go into config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**FAMILIES[family], **changes}
    if quantization:
        config["quantization_config"] = dict(quantization)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def write_shards(folder: Path, family: str, tensors: Mapping[str, Tensor], **changes: Any) -> Path:
    """Write a folder whose tensors are in two files with an index."""
    write_folder(folder, family, {}, **changes)
    (folder / "model.safetensors").unlink()
    shards: dict[str, dict[str, Tensor]] = {}
    weight_map = {}
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        file = f"model-0000{i % 2 + 1}-of-00002.safetensors"
        shards.setdefault(file, {})[name] = tensor.contiguous()
        weight_map[name] = file
    for file, content in shards.items():
        save_file(content, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
