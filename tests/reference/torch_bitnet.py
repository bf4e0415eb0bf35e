"""BitNet b1.58 with LoRA in plain torch, with autograd, to compare logits and gradients with.

Written from the papers and checked against transformers and peft by `test_torch_bitnet.py`; it
shares no code with the graph. Slow and simple on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from bitfabric.models import MODULES, Checkpoint, ModelConfig
from torch import Tensor

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class BitLinearFunction(torch.autograd.Function):
    """Exact W1.58A8 forward; straight-through backward ``dx = scale * dy @ codes``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.scale = scale
        factor = _factor(x)
        # torch rounds half to even; the products below are integers, exact in float32.
        quantized = (x * factor).round().clamp(-128, 127)
        return (quantized @ codes.T) * (scale / factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (codes,) = ctx.saved_tensors
        return ctx.scale * (gradients[0] @ codes), None, None


def _factor(x: Tensor) -> Tensor:
    return 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)


def module_path(layer: int, module: str) -> str:
    """Give a BitLinear's name as PEFT sees it, such as ``model.layers.0.mlp.up_proj``."""
    block = "self_attn" if module in ATTENTION else "mlp"
    return f"model.layers.{layer}.{block}.{module}"


def random_adapter(
    config: ModelConfig, rank: int, modules: Sequence[str] = MODULES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Give a LoRA with both factors non-zero, float32, named as in `TrainingEngine`."""
    generator = np.random.default_rng(seed)
    adapter = {}
    for layer in range(config.num_layers):
        for module in modules:
            rows, columns = config.module_shape(module)
            path = module_path(layer, module)
            a = generator.standard_normal((rank, columns)) / columns**0.5
            b = generator.standard_normal((rows, rank)) * 0.1
            adapter[f"{path}.lora_A"] = a.astype(np.float32)
            adapter[f"{path}.lora_B"] = b.astype(np.float32)
    return adapter


class TorchBitNet:
    """A checkpoint, and optionally a LoRA on it, as torch computes it.

    Parameters
    ----------
    model : Checkpoint
        The frozen weights.
    adapter : mapping of str to array
        ``<module_path>.lora_A`` [r, K] and ``.lora_B`` [N, r]; modules may be left out.
    lora_scale : float
        PEFT's alpha / r (or alpha / sqrt(r) for rsLoRA).
    dtype : torch.dtype
        float32, or float64 to judge both sides of a comparison.
    head : array, optional
        Another output head [V, H], such as one that went through int8.

    Attributes
    ----------
    edge : float
        How near any activation of the last call came to the edge between two int8 values, in units
        of the latter. Where it is small, the rounding of float32 decides for one of them, and two
        correct implementations differ; see `steady_tokens`.
    """

    def __init__(
        self,
        model: Checkpoint,
        adapter: Mapping[str, Any] | None = None,
        lora_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        head: np.ndarray | None = None,
    ) -> None:
        self.config, self.lora_scale, self.dtype = model.config, lora_scale, dtype
        self.embedding = self._tensor(model.embedding())
        self.head = self._tensor(model.head() if head is None else head)
        self.norms = {name: self._tensor(model.norm(name)) for name in self.config.norm_shapes()}
        self.adapter = {
            name: self._tensor(value).requires_grad_() for name, value in (adapter or {}).items()
        }
        self.linears: dict[tuple[int, str], tuple[Tensor, float]] = {}
        for layer in range(self.config.num_layers):
            for module in MODULES:
                weight = model.ternary(layer, module)
                self.linears[layer, module] = self._tensor(weight.codes), weight.scale

    def logits(self, tokens: Any, starts: Any = None) -> Tensor:
        """Give logits [B, T, V] of int tokens [B, T]; `starts` [B, T] as in `Batch`."""
        tokens = torch.as_tensor(np.asarray(tokens), dtype=torch.long)
        starts = torch.as_tensor(
            np.zeros(tokens.shape, np.int64) if starts is None else np.asarray(starts)
        )
        index = torch.arange(tokens.shape[1])
        # [B, 1, T, T]: position i sees j from its own document's first token to itself.
        visible = (index <= index[:, None]) & (index >= starts[:, :, None])
        rotation = self._rotation(index - starts)
        self.edge = 0.5
        x = self.embedding[tokens]
        for layer in range(self.config.num_layers):
            x = x + self._attention(layer, x, visible[:, None], rotation)
            x = x + self._mlp(layer, x)
        return self._norm("final_norm", x) @ self.head.T

    def loss(self, tokens: Any, labels: Any, starts: Any = None) -> Tensor:
        """Give the sum of token losses; labels [B, T] are already shifted, -100 is no loss."""
        labels = torch.as_tensor(np.asarray(labels), dtype=torch.long)
        logits = self.logits(tokens, starts).flatten(0, 1)
        return torch.nn.functional.cross_entropy(
            logits, labels.flatten(), ignore_index=-100, reduction="sum"
        )

    def gradients(
        self, tokens: Any, labels: Any, starts: Any = None, inverse_count: float = 1.0
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Give the loss's sum, and every LoRA tensor's gradient of `inverse_count` times it."""
        loss = self.loss(tokens, labels, starts)
        gradients = torch.autograd.grad(loss * inverse_count, list(self.adapter.values()))
        return loss.item(), {
            name: gradient.numpy() for name, gradient in zip(self.adapter, gradients, strict=True)
        }

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.array(values), dtype=self.dtype)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean_square = x.square().mean(-1, keepdim=True)
        return self.norms[name] * (x * torch.rsqrt(mean_square + self.config.rms_norm_eps))

    def _linear(self, layer: int, module: str, x: Tensor) -> Tensor:
        y = BitLinearFunction.apply(x, *self.linears[layer, module])
        scaled = (x * _factor(x)).detach()
        self.edge = min(self.edge, float((scaled - scaled.floor() - 0.5).abs().min()))
        path = module_path(layer, module)
        if f"{path}.lora_A" in self.adapter:
            a, b = self.adapter[f"{path}.lora_A"], self.adapter[f"{path}.lora_B"]
            y = y + self.lora_scale * ((x @ a.T) @ b.T)
        return y

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Give cosines and sines [B, 1, T, head_dim] of int positions [B, T]."""
        size = self.config.head_dim
        exponents = torch.arange(0, size, 2, dtype=self.dtype) / size
        angles = positions.to(self.dtype)[..., None] / self.config.rope_theta**exponents
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos(), angles.sin()

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, heads * d] to [B, heads, T, d]."""
        return x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def _attention(
        self, layer: int, x: Tensor, visible: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        x = self._norm(f"layers.{layer}.input_norm", x)
        q, k, v = (self._heads(self._linear(layer, m, x)) for m in ("q_proj", "k_proj", "v_proj"))
        q, k = _rotate(q, *rotation), _rotate(k, *rotation)
        group = self.config.num_heads // self.config.num_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = (q @ k.transpose(-1, -2)) / self.config.head_dim**0.5
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        if self.config.attention_sub_norm:
            y = self._norm(f"layers.{layer}.attention_sub_norm", y)
        return self._linear(layer, "o_proj", y)

    def _mlp(self, layer: int, x: Tensor) -> Tensor:
        x = self._norm(f"layers.{layer}.post_attention_norm", x)
        gate = self._linear(layer, "gate_proj", x)
        gates = {"relu2": gate.relu().square(), "silu": gate * gate.sigmoid()}
        y = gates[self.config.activation] * self._linear(layer, "up_proj", x)
        if self.config.ffn_sub_norm:
            y = self._norm(f"layers.{layer}.ffn_sub_norm", y)
        return self._linear(layer, "down_proj", y)


def steady_tokens(
    reference: TorchBitNet,
    shape: tuple[int, int],
    starts: Any = None,
    margin: float = 5e-5,
    seed: int = 0,
) -> np.ndarray:
    """Draw tokens, int32 [B, T], on which every correct implementation rounds alike.

    The chance that a draw will do falls with layers, tokens and width: about ``exp(-2 * margin *
    activations)``. Small models and rows find one in a few tries.
    """
    generator = np.random.default_rng(seed)
    for _ in range(1000):
        tokens = generator.integers(0, reference.config.vocab_size, shape, np.int32)
        with torch.no_grad():
            reference.logits(tokens, starts)
        if reference.edge > margin:
            return tokens
    raise AssertionError(f"no steady tokens of shape {shape}: take fewer tokens or layers")


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine
