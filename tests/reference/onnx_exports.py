"""Decoders as torch's exporter writes them, for what fabric must be able to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from bitfabric.models import MODULES, Checkpoint
from torch import Tensor, nn

from .folders import FAMILIES
from .torch_bitnet import module_path


class _LogitsOf(nn.Module):
    """A causal model from ids and mask to logits, which is what is exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return outputs.logits


def dequantised_llama(model: Checkpoint) -> nn.Module:
    """Give a Llama of transformers whose matrices are a checkpoint's ternary ones, dequantised."""
    settings = {key: value for key, value in FAMILIES["llama"].items() if key != "architectures"}
    settings["num_hidden_layers"] = model.config.num_layers
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    state: dict[str, Any] = {
        "model.embed_tokens.weight": model.embedding(),
        "lm_head.weight": model.head(),
        "model.norm.weight": model.norm("final_norm"),
    }
    for layer in range(model.config.num_layers):
        for module in MODULES:
            weight = model.ternary(layer, module)
            matrix = torch.as_tensor(weight.codes, dtype=torch.float32) * weight.scale
            state[f"{module_path(layer, module)}.weight"] = matrix
        prefix = f"model.layers.{layer}"
        for name, part in (("input_norm", "input"), ("post_attention_norm", "post_attention")):
            state[f"{prefix}.{part}_layernorm.weight"] = model.norm(f"layers.{layer}.{name}")
    llama.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    return llama


def export(model: nn.Module, path: Path) -> Path:
    """Export a causal model with torch's exporter, batch and length dynamic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = torch.arange(14).reshape(2, 7)
    dynamic = {0: "batch", 1: "sequence"}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.onnx.export(
            _LogitsOf(model).eval(),
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path
