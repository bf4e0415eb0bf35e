"""nano in torch: the arithmetic of transformers' BitNetForCausalLM, trained through the rounding.

Master weights are float32. Every BitLinear quantises them to {-1, 0, 1} times their mean
magnitude and its input to int8 by each token's absmax; gradients pass the rounding unchanged
(the straight-through estimate).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


@dataclass(frozen=True)
class NanoConfig:
    """Shape of the model; the names are those of transformers' BitNetConfig."""

    vocab_size: int = 8192
    hidden_size: int = 384
    intermediate_size: int = 1024
    num_hidden_layers: int = 8
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


class _RoundThrough(torch.autograd.Function):
    """Round and clamp forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        return x.round().clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class BitLinear(nn.Module):
    """W1.58A8 linear layer without bias.

    The product runs on whole numbers (exact in bfloat16, which holds integers to 256), and the
    two scales are applied to its result.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.normal_(self.weight, std=0.02)

    def scale(self) -> Tensor:
        """Mean magnitude of the master weights, the scale of the ternary ones."""
        return self.weight.detach().abs().mean().clamp(min=1e-5)

    def codes(self) -> Tensor:
        """The ternary weights as float32 in {-1, 0, 1}."""
        return _RoundThrough.apply(self.weight / self.scale(), -1.0, 1.0)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return y [..., outputs] in `dtype` for x [..., inputs]."""
        x = x.float()
        gain = 127.0 / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        levels = _RoundThrough.apply(x * gain, -128.0, 127.0)
        y = F.linear(levels.to(dtype), self.codes().to(dtype))
        return (y * (self.scale() / gain)).to(dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 of the shape of x, which is normed over its last axis."""
        x = x.float()
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on x [batch, heads, tokens, head_dim], halves paired."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention inside documents, with a norm before the output layer."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = BitLinear(config.hidden_size, config.hidden_size)
        self.k_proj = BitLinear(config.hidden_size, keys)
        self.v_proj = BitLinear(config.hidden_size, keys)
        self.o_proj = BitLinear(config.hidden_size, config.hidden_size)
        self.attn_sub_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Return [batch, tokens, hidden] for x of the same shape."""
        batch, length, _ = x.shape

        def heads(projection: BitLinear) -> Tensor:
            y = projection(x, context.dtype)
            return y.view(batch, length, -1, self.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj), context.cos, context.sin)
        k = rotate(heads(self.k_proj), context.cos, context.sin)
        v = heads(self.v_proj)
        documents = context.documents
        if context.block_mask is not None:

            def inside(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return torch.where(documents[b, i] == documents[b, j], score, -float("inf"))

            y = flex_attention(
                q, k, v, score_mod=inside, block_mask=context.block_mask, enable_gqa=True
            )
        else:
            mask = (documents[:, None, :, None] == documents[:, None, None, :]).tril()
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        y = y.transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(self.attn_sub_norm(y), context.dtype)


class MLP(nn.Module):
    """relu² gate, product, norm, projection."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.gate_proj = BitLinear(config.hidden_size, config.intermediate_size)
        self.up_proj = BitLinear(config.hidden_size, config.intermediate_size)
        self.down_proj = BitLinear(config.intermediate_size, config.hidden_size)
        self.ffn_sub_norm = RMSNorm(config.intermediate_size, config.rms_norm_eps)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Return [batch, tokens, hidden] for x of the same shape."""
        gate = self.gate_proj(x, context.dtype).float().relu().square()
        product = gate * self.up_proj(x, context.dtype).float()
        return self.down_proj(self.ffn_sub_norm(product), context.dtype)


class Layer(nn.Module):
    """One decoder layer; the residual stream is float32."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Return the residual stream [batch, tokens, hidden] after the layer."""
        x = x + self.self_attn(self.input_layernorm(x), context)
        return x + self.mlp(self.post_attention_layernorm(x), context)


@dataclass
class Context:
    """What every layer of one forward pass shares.

    Attributes
    ----------
    documents : Tensor
        int [batch, tokens]: number of the document of each token inside its row.
    cos, sin : Tensor
        float32 [tokens, head_dim / 2]. Positions count from the row's start: rotary attention
        sees only differences, so documents need no restart.
    dtype : torch.dtype
        Operands of the matrix products: bfloat16 in training, float32 in measuring.
    block_mask : BlockMask or None
        Causal blocks for flex attention; None takes scaled_dot_product_attention.
    """

    documents: Tensor
    cos: Tensor
    sin: Tensor
    dtype: torch.dtype
    block_mask: BlockMask | None


class Nano(nn.Module):
    """The language model with its tied head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        half = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        angles = torch.outer(
            torch.arange(config.max_position_embeddings).float(), config.rope_theta**-half
        )
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def losses(
        self,
        tokens: Tensor,
        labels: Tensor,
        documents: Tensor,
        dtype: torch.dtype = torch.float32,
        block_mask: BlockMask | None = None,
    ) -> Tensor:
        """Cross-entropy in nats of every position [batch * tokens]; 0 where the label is -100."""
        length = tokens.shape[1]
        context = Context(documents, self.cos[:length], self.sin[:length], dtype, block_mask)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, context)
        logits = F.linear(self.norm(x).to(dtype), self.embed_tokens.weight.to(dtype))
        return F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
        )


def causal_blocks(length: int, device: str) -> BlockMask:
    """Causal mask of flex attention for rows of `length` tokens."""

    def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j

    return create_block_mask(causal, None, None, length, length, device=device)
