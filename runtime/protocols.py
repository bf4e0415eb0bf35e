"""What the training loop and the generator ask of a bundle and of the engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from .batch import Batch

Tensors = dict[str, npt.NDArray[np.float32]]


class BundleLike(Protocol):
    """An open bundle.

    Attributes
    ----------
    manifest : mapping
        The whole of manifest.json.
    config : mapping
        The model's configuration.
    lora : mapping
        rank, alpha, scale, modules, dropout, rslora.
    context, micro_batch : int
        Tokens of a row and rows of a micro-batch, as compiled.
    tokenizer_path : Path or None
        tokenizer.json, or the folder that holds it.
    """

    @property
    def manifest(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def config(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def lora(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def context(self) -> int: ...  # noqa: D102
    @property
    def micro_batch(self) -> int: ...  # noqa: D102
    @property
    def tokenizer_path(self) -> Path | None: ...  # noqa: D102
    @property
    def path(self) -> Path: ...  # noqa: D102


BundleT = TypeVar("BundleT", bound=BundleLike)


class Trains(Protocol):
    """Computes losses, gradients and updates of the LoRA parameters."""

    @property
    def device_memory_mib(self) -> float:
        """Most memory of a device held at once, MiB; 0 where the processor itself computes."""
        ...

    def initialize_adapter(self, seed: int) -> None:
        """Start from A random (Kaiming uniform) and B zero."""

    def accumulate(self, batch: Batch, inverse_count: float, seed: int) -> float:
        """Add the gradients of `inverse_count` * sum of losses; give the sum of losses."""
        ...

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
        """Take one AdamW step, zero the gradients; give their norm before clipping."""
        ...

    def evaluate(self, batch: Batch) -> float:
        """Give the sum of the losses of a micro-batch."""
        ...

    def state(self) -> Tensors:
        """Give adapter, moment1 and moment2, float32 [num_layers, n]."""
        ...

    def load_state(self, state: Tensors) -> None:
        """Take what `state` gave."""

    def adapter_tensors(self) -> Tensors:
        """Give lora_A [rank, in] and lora_B [out, rank] of every module, float32."""
        ...

    def load_adapter_tensors(self, tensors: Tensors) -> None:
        """Take what `adapter_tensors` gave."""


@runtime_checkable
class Streams(Protocol):
    """Reads layers while others compute."""

    def transfer_seconds(self) -> tuple[float, float]:
        """Return the seconds of reading so far, and of them those that the computing waited."""
        ...


class Generates(Protocol):
    """Runs the model forward, one sequence, with its key-value cache."""

    @property
    def position(self) -> int:
        """Number of tokens in the cache."""
        ...

    @property
    def capacity(self) -> int:
        """Number of tokens that the cache can hold."""
        ...

    def reset(self) -> None:
        """Empty the cache."""

    def rewind(self, position: int) -> None:
        """Forget what the cache has after its first `position` tokens."""

    def prefill(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append tokens; give the logits [vocab_size] that follow the last."""
        ...

    def decode(self, token: int) -> npt.NDArray[np.float32]:
        """Append one token; give the logits [vocab_size] that follow it."""
        ...
