"""Write a trained nano as a Hugging Face folder: packed ternary weights, the rest in float16.

The rest is all of one type because transformers keeps the stored types of a quantised checkpoint:
with two of them its own forward pass would fail.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model import BitLinear, Nano, RMSNorm
from safetensors.torch import save_file
from torch import Tensor, nn

# Where transformers' BitNetForCausalLM keeps the parts that our modules hold under other names.
MODULE_PREFIX = "model."


def pack(codes: Tensor) -> Tensor:
    """Pack ternary codes [out, in] to uint8 [out / 4, in].

    Bits 2i and 2i+1 of packed row r hold row r + i * (out / 4), as value + 1.
    """
    quarter = codes.shape[0] // 4
    digits = (codes + 1).to(torch.uint8).view(4, quarter, codes.shape[1])
    return digits[0] | digits[1] << 2 | digits[2] << 4 | digits[3] << 6


@torch.no_grad()
def round_to_shipped(model: Nano) -> None:
    """Round embedding, norms and scales to float16 in place, so that measuring sees them so."""
    for module in model.modules():
        if isinstance(module, BitLinear):
            # The scale is the weights' mean magnitude: scaling them moves it to its rounded value.
            module.weight.mul_(module.scale().half().float() / module.scale())
        elif isinstance(module, RMSNorm | nn.Embedding):
            module.weight.copy_(module.weight.half().float())


def tensors(model: Nano) -> dict[str, Tensor]:
    """All tensors of the shipped file; the head is the embedding and has none of its own."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, BitLinear):
            found[f"{MODULE_PREFIX}{name}.weight"] = pack(module.codes().detach().cpu())
            found[f"{MODULE_PREFIX}{name}.weight_scale"] = module.scale().half().cpu().reshape(1)
        elif isinstance(module, RMSNorm | nn.Embedding):
            found[f"{MODULE_PREFIX}{name}.weight"] = module.weight.detach().half().cpu()
    return found


def config_json(model: Nano) -> dict[str, object]:
    """config.json of the folder, with the packing that transformers calls autobitlinear."""
    config = model.config
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "hidden_act": "relu2",
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }


def write_folder(model: Nano, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config_json(model), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    save_file(tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
