"""Tiny models of the dense families with PEFT's adapters, as transformers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitfabric.models import MODULES
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3Config, Qwen3ForCausalLM

VOCABULARY, WINDOW = 64, 7
"""The window is shorter than the rows, so that local layers see less than global ones."""
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
}
OWN: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 32,
        },
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": False}),
}


def make(family: str, folder: Path, rank: int, alpha: float) -> tuple[Any, dict[str, np.ndarray]]:
    """Save a random model and return it with an adapter, and the adapter as the engines name it.

    Every weight is exact in float16; norms are far enough from one to show in the results.
    """
    torch.manual_seed(0)
    config_class, model_class, own = OWN[family]
    model = model_class(config_class(**SHAPE, **own, attn_implementation="eager"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
            elif "embed" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
            parameter.copy_(parameter.half())
    model.save_pretrained(folder)
    options = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(MODULES))
    tuned = get_peft_model(model, options)
    adapter = {}
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn_like(parameter))
            adapter[engine_name(name)] = parameter.detach().numpy().copy()
    return tuned.eval(), adapter


def engine_name(name: str) -> str:
    """Return the engines' name of PEFT's parameter."""
    return name.removeprefix("base_model.model.").removesuffix(".default.weight")


def loss_and_gradients(
    model: Any, tokens: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Return the summed loss of the labelled tokens and the adapter's gradients."""
    logits = model(torch.from_numpy(tokens).long()).logits
    targets = torch.from_numpy(labels).long().flatten()
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets, ignore_index=-100, reduction="sum"
    )
    loss.backward()
    gradients = {
        engine_name(name): parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    return loss.item(), gradients
