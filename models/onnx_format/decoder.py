"""The decoder as an ONNX graph, with its key-value cache as inputs and outputs.

Names and meanings are those of the usual decoder exports: ``input_ids`` [B, T],
``attention_mask`` [B, P + T], ``position_ids`` [B, T] and ``past_key_values.N.key`` and ``.value``
[B, kv heads, P, head size] go in; ``logits`` [B, T, V] and ``present.N.key`` and ``.value``
[B, kv heads, P + T, head size] come out. B, T and P may be anything; P is 0 for a prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from ..checkpoint import Checkpoint
from ..config import ModelConfig
from ..lora import module_path
from .builder import GraphBuilder
from .linear import Adapters, QuantizedInput
from .tables import half_table, int8_table

_HIDDEN = -1e30
"""Score of a position that is not seen; finite, so that a row without any gives no NaN."""


class Decoder:
    """Writes the graph of a model, layer by layer.

    Parameters
    ----------
    graph : GraphBuilder
    model : Checkpoint
    bits : int
        Bits of a ternary weight: 2, 4 or 8.
    head : str
        How embedding and head are stored: ``f16``, or ``int8`` with one scale a row.
    adapters : sequence
        LoRA adapters with their factors.
    """

    def __init__(
        self, graph: GraphBuilder, model: Checkpoint, bits: int, head: str, adapters: Adapters
    ) -> None:
        self.graph, self.model, self.config = graph, model, model.config
        self.bits, self.head, self.adapters = bits, head, adapters

    def write(self, progress: Callable[[float], None] | None = None) -> None:
        """Add everything from ``input_ids`` to ``logits``; `progress` is told the fraction done."""
        graph, layers = self.graph, self.config.num_layers
        self.rotation = self._rotation()
        self.mask = self._mask()
        tables = self._tables()
        x = self._embedded(tables["embedding"])
        for layer in range(layers):
            with graph.scope(f"model/layers.{layer}"):
                x = graph.op("Add", x, self._attention(layer, x))
                x = graph.op("Add", x, self._mlp(layer, x))
            if progress is not None:
                progress((layer + 1) / layers)
        table = self._float_table(tables["embedding" if self.config.tied_head else "head"])
        graph.op(
            "MatMul", self._norm("final_norm", x), graph.transpose(table, 1, 0), output="logits"
        )

    def _norm(self, name: str, x: str) -> str:
        weight = np.asarray(self.model.norm(name), np.float32)
        return self.graph.norm(
            x, self.graph.weight(f"model.{name}.weight", weight), self.config.rms_norm_eps
        )

    def _quantized(self, x: str, module: str) -> QuantizedInput:
        return QuantizedInput(self.graph, x, self.config.module_shape(module)[1], self.bits)

    def _linear(self, x: QuantizedInput, layer: int, module: str) -> str:
        path = f"model.layers.{layer}.{module_path(module)}"
        return x.linear(path, self.model.ternary(layer, module), self.adapters)

    def _rotation(self) -> tuple[str, str]:
        """Add cosines and sines, float32 [B, 1, T, head size / 2]; the angles are float64."""
        graph, size = self.graph, self.config.head_dim
        inverse = self.config.rope_theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
        with graph.scope("rope"):
            positions = graph.op("Unsqueeze", "position_ids", graph.integers([1, 3]))
            positions = graph.cast(positions, TensorProto.DOUBLE)
            angles = graph.op("Mul", positions, graph.weight("model.rope.inv_freq", inverse))
            cosine, sine = (
                graph.cast(graph.op(kind, angles), TensorProto.FLOAT) for kind in ("Cos", "Sin")
            )
        return cosine, sine

    def _mask(self) -> str:
        """Add what is added to the scores, float32 [B, 1, G T, P + T], G heads to a kv head.

        It is worked out from sums of ones alone: not every importer follows a shape as a value.
        """
        graph = self.graph
        with graph.scope("mask"):
            keys, total = self._places("attention_mask")
            queries, length = self._places("input_ids")
            queries = graph.op("Add", queries, graph.op("Sub", total, length))
            queries = graph.op("Unsqueeze", queries, graph.integers([2]))
            causal = graph.op(
                "LessOrEqual", graph.op("Unsqueeze", keys, graph.integers([1])), queries
            )
            real = graph.op("Unsqueeze", "attention_mask", graph.integers([1]))
            seen = graph.op("And", causal, graph.cast(real, TensorProto.BOOL))
            mask = graph.op("Where", seen, graph.scalar(0.0), graph.scalar(_HIDDEN))
            mask = graph.op("Unsqueeze", mask, graph.integers([1]))
            group = self.config.num_heads // self.config.num_kv_heads
            return graph.op("Concat", *[mask] * group, axis=2) if group > 1 else mask

    def _places(self, tensor: str) -> tuple[str, str]:
        """Add 1, 2, ... n, int64 [B, n], for each row of a tensor [B, n], and n, int64 [B, 1]."""
        graph = self.graph
        ones = graph.cast(graph.op("Equal", tensor, tensor), TensorProto.INT64)
        axis = graph.weight("int_1", np.array(1, np.int64))
        count = graph.op("ReduceSum", ones, graph.integers([1]), keepdims=1)
        return graph.op("CumSum", ones, axis), count

    def _heads(self, x: str, heads: int) -> str:
        """[B, T, heads * size] to [B, heads, T, size]."""
        split = self.graph.reshape(x, 0, 0, heads, self.config.head_dim)
        return self.graph.transpose(split, 0, 2, 1, 3)

    def _rotated(self, x: str) -> str:
        """Turn the pairs (x[d], x[d + size / 2]) by their position's angles."""
        graph, (cosine, sine) = self.graph, self.rotation
        first, second = graph.op("Split", x, axis=-1, num_outputs=2, outputs=2)
        turned_first = graph.op(
            "Sub", graph.op("Mul", first, cosine), graph.op("Mul", second, sine)
        )
        turned_second = graph.op(
            "Add", graph.op("Mul", second, cosine), graph.op("Mul", first, sine)
        )
        return graph.op("Concat", turned_first, turned_second, axis=-1)

    def _attention(self, layer: int, x: str) -> str:
        graph, config = self.graph, self.config
        heads, kv, size = config.num_heads, config.num_kv_heads, config.head_dim
        x = self._norm(f"layers.{layer}.input_norm", x)
        with graph.scope("self_attn"):
            shared = self._quantized(x, "q_proj")
            q, k, v = (self._linear(shared, layer, m) for m in ("q_proj", "k_proj", "v_proj"))
            q = self._rotated(self._heads(q, heads))
            k, v = self._rotated(self._heads(k, kv)), self._heads(v, kv)
            k, v = (
                graph.op(
                    "Concat", f"past_key_values.{layer}.{name}", new, axis=2,
                    output=f"present.{layer}.{name}",
                )
                for name, new in (("key", k), ("value", v))
            )  # fmt: skip
            # The G heads that share a kv head stand one below the other: no key is repeated.
            grouped = graph.reshape(q, 0, kv, -1, size) if kv < heads else q
            scores = graph.op("MatMul", grouped, graph.transpose(k, 0, 1, 3, 2))
            scores = graph.op("Mul", scores, graph.scalar(float(np.float32(size**-0.5))))
            weights = graph.op("Softmax", graph.op("Add", scores, self.mask), axis=-1)
            mixed = graph.op("MatMul", weights, v)
            if kv < heads:
                mixed = graph.reshape(mixed, 0, heads, -1, size)
            mixed = graph.reshape(graph.transpose(mixed, 0, 2, 1, 3), 0, 0, heads * size)
            if config.attention_sub_norm:
                mixed = self._norm(f"layers.{layer}.attention_sub_norm", mixed)
            return self._linear(self._quantized(mixed, "o_proj"), layer, "o_proj")

    def _mlp(self, layer: int, x: str) -> str:
        graph, config = self.graph, self.config
        x = self._norm(f"layers.{layer}.post_attention_norm", x)
        with graph.scope("mlp"):
            shared = self._quantized(x, "gate_proj")
            gate, up = (self._linear(shared, layer, m) for m in ("gate_proj", "up_proj"))
            if config.activation == "silu":
                gate = graph.op("Mul", gate, graph.op("Sigmoid", gate))
            else:
                positive = graph.op("Relu", gate)
                gate = graph.op("Mul", positive, positive)
            gated = graph.op("Mul", gate, up)
            if config.ffn_sub_norm:
                gated = self._norm(f"layers.{layer}.ffn_sub_norm", gated)
            return self._linear(self._quantized(gated, "down_proj"), layer, "down_proj")

    def _tables(self) -> dict[str, tuple[str, ...]]:
        """Store the embedding and, where it is not tied, the head; give their initialisers."""
        sources = {"embedding": ("model.embed_tokens.weight", self.model.embedding)}
        if not self.config.tied_head:
            sources["head"] = ("lm_head.weight", self.model.head)
        stored: dict[str, tuple[str, ...]] = {}
        for key, (name, read) in sources.items():
            if self.head == "int8":
                values, scales = int8_table(read, self.config)
                weight = self.graph.weight
                stored[key] = weight(name, values), weight(f"{name}_scale", scales)
            else:
                stored[key] = (self.graph.weight(name, half_table(name, read, self.config)),)
        return stored

    def _embedded(self, table: tuple[str, ...]) -> str:
        """Add the token vectors, float32 [B, T, H]."""
        rows = [self.graph.op("Gather", part, "input_ids", axis=0) for part in table]
        return self._float_table(tuple(rows))

    def _float_table(self, table: tuple[str, ...]) -> str:
        """Give the float32 of a table, or of rows of it."""
        values = self.graph.cast(table[0], TensorProto.FLOAT)
        return self.graph.op("Mul", values, table[1]) if len(table) > 1 else values


def graph_inputs(config: ModelConfig) -> list[ValueInfoProto]:
    """Describe the graph's inputs."""
    info, integer = helper.make_tensor_value_info, TensorProto.INT64
    return [
        info("input_ids", integer, ["batch", "sequence"]),
        info("attention_mask", integer, ["batch", "total_sequence"]),
        info("position_ids", integer, ["batch", "sequence"]),
        *_cache(config, "past_key_values", "past_sequence"),
    ]


def graph_outputs(config: ModelConfig) -> list[ValueInfoProto]:
    """Describe the graph's outputs."""
    shape: list[str | int | None] = ["batch", "sequence", config.vocab_size]
    return [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape),
        *_cache(config, "present", "total_sequence"),
    ]


def _cache(config: ModelConfig, prefix: str, length: str) -> list[ValueInfoProto]:
    shape: list[str | int | None] = ["batch", config.num_kv_heads, length, config.head_dim]
    return [
        helper.make_tensor_value_info(f"{prefix}.{layer}.{name}", TensorProto.FLOAT, shape)
        for layer in range(config.num_layers)
        for name in ("key", "value")
    ]
