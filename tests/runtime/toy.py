"""A small real learner behind the engine's interface: exact LoRA gradients and AdamW in numpy.

The state of a position is the mean of its document's token vectors so far plus its own; one LoRA
matrix pair changes it, a fixed random head reads it. So losses fall, documents that are not kept
apart change them, and every number depends on batch order, dropout seed and optimizer state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bitfabric.runtime.batch import IGNORE, Batch

VOCAB, HIDDEN = 300, 24
Array = npt.NDArray[Any]


def toy_config() -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": 32,
        "num_layers": 1,
        "num_heads": 3,
        "num_kv_heads": 1,
        "head_dim": 8,
        "vocab_size": VOCAB,
        "bos_token_id": 1,
        "eos_token_ids": [2],
    }


@dataclass
class ToyBundle:
    path: Path = Path("toy.fabric")
    context: int = 48
    micro_batch: int = 2
    tokenizer_path: Path | None = None
    config: Mapping[str, Any] = field(default_factory=toy_config)
    lora: Mapping[str, Any] = field(
        default_factory=lambda: {
            "rank": 4,
            "alpha": 8.0,
            "scale": 2.0,
            "modules": ["q_proj"],
            "dropout": 0.1,
            "rslora": False,
        }
    )
    manifest: Mapping[str, Any] = field(
        default_factory=lambda: {"model": {"name": "toy"}, "target": "cpu"}
    )


def _fixed(bundle: ToyBundle) -> tuple[Array, Array]:
    key = hashlib.sha256(json.dumps(dict(bundle.config)).encode()).digest()
    generator = np.random.default_rng(list(key[:8]))
    vectors = generator.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    head = (generator.standard_normal((VOCAB, HIDDEN)) * 0.2).astype(np.float32)
    return vectors, head


class ToyTrainingEngine:
    """Implements `bitfabric.runtime.protocols.Trains`."""

    def __init__(self, bundle: ToyBundle) -> None:
        self.vectors, self.head = _fixed(bundle)
        self.rank = int(bundle.lora["rank"])
        self.scale = float(bundle.lora["scale"])
        self.dropout = float(bundle.lora["dropout"])
        self.size = 2 * self.rank * HIDDEN
        self._state = {
            name: np.zeros((1, self.size), np.float32) for name in ("adapter", "moment1", "moment2")
        }
        self.gradient = np.zeros((1, self.size), np.float32)

    def initialize_adapter(self, seed: int) -> None:
        a = np.random.default_rng(seed).uniform(-1, 1, self.rank * HIDDEN) / np.sqrt(HIDDEN)
        self._state["adapter"][:] = 0
        self._state["adapter"][0, : a.size] = a

    def _factors(self, flat: Array) -> tuple[Array, Array]:
        half = self.rank * HIDDEN
        return flat[0, :half].reshape(self.rank, HIDDEN), flat[0, half:].reshape(HIDDEN, self.rank)

    def _hidden(self, batch: Batch) -> Array:
        embedded = self.vectors[batch.tokens]
        position = np.arange(batch.tokens.shape[1])
        total = np.cumsum(embedded, axis=1)
        total = np.concatenate([np.zeros_like(total[:, :1]), total], axis=1)
        rows = np.arange(len(batch.tokens))[:, None]
        document = total[rows, position + 1] - total[rows, batch.starts]
        length = (position - batch.starts + 1)[..., None].astype(np.float32)
        return embedded + document / length

    def _forward(self, batch: Batch, seed: int | None) -> tuple[float, Array, Array, Array]:
        a, b = self._factors(self._state["adapter"])
        kept = batch.labels != IGNORE
        hidden = self._hidden(batch)[kept]
        dropped = hidden
        if seed is not None and self.dropout:
            keep = np.random.default_rng(seed).random(hidden.shape) >= self.dropout
            dropped = (hidden * keep / (1 - self.dropout)).astype(np.float32)
        logits = (hidden + self.scale * dropped @ a.T @ b.T) @ self.head.T
        logits -= logits.max(axis=1, keepdims=True)
        exponential = np.exp(logits)
        probability = exponential / exponential.sum(axis=1, keepdims=True)
        labels = batch.labels[kept]
        chosen = probability[np.arange(len(labels)), labels]
        return float(-np.log(chosen).astype(np.float64).sum()), probability, dropped, labels

    device_memory_mib = 0.0

    def accumulate(self, batch: Batch, inverse_count: float, seed: int) -> float:
        loss, probability, dropped, labels = self._forward(batch, seed)
        a, b = self._factors(self._state["adapter"])
        probability[np.arange(len(labels)), labels] -= 1
        dy = (probability * np.float32(inverse_count * self.scale)) @ self.head
        gradient_a, gradient_b = b.T @ dy.T @ dropped, dy.T @ (dropped @ a.T)
        self.gradient += np.concatenate([gradient_a.ravel(), gradient_b.ravel()])[None]
        return loss

    def update(
        self,
        *,
        learning_rate: float,
        step: int,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float = 0.0,
    ) -> float:
        norm = float(np.sqrt((self.gradient.astype(np.float64) ** 2).sum()))
        if clip_norm and norm > clip_norm:
            self.gradient *= np.float32(clip_norm / norm)
        adapter, m, v = (self._state[name] for name in ("adapter", "moment1", "moment2"))
        m[:] = beta1 * m + (1 - beta1) * self.gradient
        v[:] = beta2 * v + (1 - beta2) * self.gradient**2
        corrected = (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + epsilon)
        adapter -= np.float32(learning_rate) * (corrected + weight_decay * adapter)
        self.gradient[:] = 0
        return norm

    def evaluate(self, batch: Batch) -> float:
        return self._forward(batch, None)[0]

    def state(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self._state.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        for name in self._state:
            self._state[name][:] = state[name]

    def adapter_tensors(self) -> dict[str, Array]:
        a, b = self._factors(self._state["adapter"].copy())
        name = "model.layers.0.self_attn.q_proj"
        return {f"{name}.lora_A": a, f"{name}.lora_B": b}

    def load_adapter_tensors(self, tensors: Mapping[str, Array]) -> None:
        name = "model.layers.0.self_attn.q_proj"
        flat = [tensors[f"{name}.lora_A"].ravel(), tensors[f"{name}.lora_B"].ravel()]
        self._state["adapter"][:] = np.concatenate(flat)[None]


class ToyInferenceEngine:
    """Implements `bitfabric.runtime.protocols.Generates` with the same model."""

    def __init__(
        self,
        bundle: ToyBundle,
        adapters: Sequence[tuple[dict[str, Array], float]] = (),
        capacity: int = 2048,
    ) -> None:
        self.vectors, self.head = _fixed(bundle)
        self.adapters = [(list(tensors.values()), scale) for tensors, scale in adapters]
        self.capacity = capacity
        self.cache: list[int] = []
        self.prefilled: list[int] = []

    @property
    def position(self) -> int:
        return len(self.cache)

    def reset(self) -> None:
        self.cache = []

    def rewind(self, position: int) -> None:
        self.cache = self.cache[:position]

    def prefill(self, tokens: Sequence[int]) -> Array:
        assert len(tokens)
        self.cache += tokens
        self.prefilled.append(len(tokens))
        vectors = self.vectors[self.cache]
        hidden = vectors[-1] + vectors.mean(axis=0)
        changed = hidden + sum(scale * (b @ (a @ hidden)) for (a, b), scale in self.adapters)
        return (self.head @ changed).astype(np.float32)

    def decode(self, token: int) -> Array:
        return self.prefill([token])
