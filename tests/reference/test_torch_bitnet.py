"""The torch reference agrees with transformers and peft, which are older and wiser than it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bitfabric.models import MODULES, open_model
from torch import nn
from transformers.integrations.bitnet import AutoBitLinear
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .folders import AUTOBITLINEAR, BITLINEAR, FAMILIES, ONLINE, masters, packed, write_folder
from .torch_bitnet import TorchBitNet, random_adapter, steady_tokens

SHAPE = (2, 16)


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    """Skip torch.compile, which transformers puts on its BitNet functions: minutes for nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def transformers_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def float32_folder(folder: Path, family: str, storage: str, **changes: Any) -> Path:
    """Write a tiny model in float32, so that transformers loses nothing in its own dtype."""
    tensors = masters(family, torch.float32)
    for name in tensors:
        if "embed_tokens" in name or "lm_head" in name:
            # A bundle stores float16; then it stores this exactly, as it does published bf16.
            tensors[name] = tensors[name].half().float()
    if storage == "online":
        return write_folder(folder, family, tensors, ONLINE, **changes)
    inverted = storage == "bitlinear"
    quantization = BITLINEAR if inverted else AUTOBITLINEAR
    return write_folder(folder, family, packed(tensors, inverted), quantization, **changes)


def assert_same_logits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("storage", ["online", "autobitlinear", "bitlinear"])
@pytest.mark.parametrize("family", ["bitnet", "llama"])
def test_logits_equal_transformers(tmp_path: Path, family: str, storage: str) -> None:
    folder = float32_folder(tmp_path / "m", family, storage)
    reference = TorchBitNet(open_model(str(folder)))
    tokens = steady_tokens(reference, SHAPE)
    expected = transformers_model(folder)(torch.as_tensor(tokens)).logits
    assert_same_logits(reference.logits(tokens), expected)


def test_silu_gate_with_sub_norms_equals_transformers(tmp_path: Path) -> None:
    folder = float32_folder(tmp_path / "m", "bitnet", "online", hidden_act="silu")
    reference = TorchBitNet(open_model(str(folder)))
    tokens = steady_tokens(reference, SHAPE)
    expected = transformers_model(folder)(torch.as_tensor(tokens)).logits
    assert_same_logits(reference.logits(tokens), expected)


class SubNormed(nn.Module):
    """A BitLinear with an RMSNorm in front, as 1bitLLM has it."""

    def __init__(self, norm: torch.Tensor, eps: float, linear: nn.Module) -> None:
        super().__init__()
        self.norm = LlamaRMSNorm(len(norm), eps)
        self.norm.weight.data = norm
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))


def one_bit_llm(tensors: dict[str, torch.Tensor]) -> Any:
    """Make 1bitLLM's model of parts of transformers: Llama, its BitLinear, two norms a layer."""
    settings = {key: value for key, value in FAMILIES["1bitllm"].items() if key != "architectures"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    norms = {name: t for name, t in tensors.items() if "inner_attn_ln" in name or "ffn_l" in name}
    rest = {name: t for name, t in tensors.items() if name not in norms}
    model.load_state_dict({**rest, "lm_head.weight": rest["model.embed_tokens.weight"]})
    eps = settings["rms_norm_eps"]
    for index, layer in enumerate(model.model.layers):
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, nn.Linear):
                    online = AutoBitLinear(
                        linear.in_features, linear.out_features, bias=False, online_quant=True
                    )
                    online.weight = linear.weight
                    setattr(parent, name, online)
        prefix = f"model.layers.{index}"
        attention, mlp = layer.self_attn, layer.mlp
        inner, ffn = (
            norms[f"{prefix}.{n}.weight"] for n in ("self_attn.inner_attn_ln", "mlp.ffn_layernorm")
        )
        attention.o_proj = SubNormed(inner, eps, attention.o_proj)
        mlp.down_proj = SubNormed(ffn, eps, mlp.down_proj)
    return model


def test_logits_equal_a_1bitllm_model(tmp_path: Path) -> None:
    tensors = masters("1bitllm", torch.float32)
    folder = write_folder(tmp_path / "m", "1bitllm", tensors)
    reference = TorchBitNet(open_model(str(folder)))
    tokens = steady_tokens(reference, SHAPE)
    expected = one_bit_llm(tensors)(torch.as_tensor(tokens)).logits
    assert_same_logits(reference.logits(tokens), expected)


@pytest.mark.parametrize("modules", [MODULES, ("q_proj", "down_proj")])
@pytest.mark.parametrize("family", ["bitnet", "llama"])
def test_lora_loss_and_gradients_equal_peft(
    tmp_path: Path, family: str, modules: tuple[str, ...]
) -> None:
    peft = pytest.importorskip("peft")
    folder = float32_folder(tmp_path / "m", family, "online")
    config = open_model(str(folder)).config
    adapter = random_adapter(config, rank=4, modules=modules)
    reference = TorchBitNet(open_model(str(folder)), adapter, lora_scale=2.0)
    tokens = steady_tokens(reference, SHAPE)
    labels = np.concatenate([tokens[:, 1:], np.full((2, 1), -100)], 1)
    labels[0, :9] = -100
    loss, gradients = reference.gradients(tokens, labels, inverse_count=0.25)

    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(modules), lora_dropout=0.0)
    model = peft.get_peft_model(transformers_model(folder), lora)
    parameters = {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    assert parameters.keys() == adapter.keys()
    for name, parameter in parameters.items():
        parameter.data = torch.as_tensor(adapter[name])
    logits = model(torch.as_tensor(tokens)).logits
    expected = nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.as_tensor(labels).flatten(), reduction="sum"
    )
    (0.25 * expected).backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in parameters.items():
        scale = parameter.grad.abs().max().item()
        np.testing.assert_allclose(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5 * scale)


def test_documents_in_one_row_do_not_see_each_other(tmp_path: Path) -> None:
    folder = float32_folder(tmp_path / "m", "bitnet", "online")
    reference = TorchBitNet(open_model(str(folder)), dtype=torch.float64)
    tokens = steady_tokens(reference, (1, 24))
    starts = np.array([[0] * 10 + [10] * 14])
    together = reference.logits(tokens, starts)
    apart = [reference.logits(document) for document in (tokens[:, :10], tokens[:, 10:])]
    torch.testing.assert_close(together, torch.cat(apart, 1))
    assert not torch.allclose(together, reference.logits(tokens))


def test_float64_agrees_with_float32(tmp_path: Path) -> None:
    model = open_model(str(float32_folder(tmp_path / "m", "llama", "online")))
    double = TorchBitNet(model, dtype=torch.float64)
    tokens = steady_tokens(double, SHAPE)
    assert_same_logits(TorchBitNet(model).logits(tokens).double(), double.logits(tokens))


def test_another_head_changes_only_the_logits(tmp_path: Path) -> None:
    model = open_model(str(float32_folder(tmp_path / "m", "bitnet", "online")))
    reference, doubled = TorchBitNet(model), TorchBitNet(model, head=2 * model.head())
    tokens = steady_tokens(reference, SHAPE)
    torch.testing.assert_close(doubled.logits(tokens), 2 * reference.logits(tokens))
