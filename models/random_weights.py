"""Random models of published shapes, made one matrix at a time, for measuring and for tests."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..targets import FabricError
from .checkpoint import ALL_ROWS, Checkpoint, TernaryWeight
from .config import MODULES, ModelConfig

# Rows of the embedding that share one seed: small enough to stream, large enough to be quick.
_BLOCK_ROWS = 2048
_EMBEDDING_STD = 0.02
# 256 byte values onto the three codes, 85 or 86 each, for bytes.translate.
_CODE_OF_BYTE = ((np.arange(256) * 3 >> 8) - 1).astype(np.int8).tobytes()


def _published(hidden: int, ffn: int, layers: int, heads: int) -> ModelConfig:
    """One row of the published benchmarks: the 1bitLLM architecture with its vocabulary."""
    return ModelConfig(
        family="random",
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=32002,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        activation="silu",
        attention_sub_norm=True,
        ffn_sub_norm=True,
        tied_head=True,
        max_context=2048,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


_DENSE: dict[str, Any] = {
    "linear": "dense",
    "head_norms": True,
    "attention_sub_norm": False,
    "ffn_sub_norm": False,
}
SHAPES: dict[str, ModelConfig] = {
    "125M": _published(768, 3072, 11, 12),
    "350M": _published(1024, 3072, 24, 16),
    "1B": _published(2048, 3584, 24, 32),
    "2.7B": _published(3072, 7680, 24, 32),
    "3.8B": _published(3840, 8192, 24, 32),
    "7B": _published(4096, 12032, 32, 32),
    "13B": _published(5120, 13824, 40, 40),
    # microsoft/bitnet-b1.58-2B-4T
    "2B-4T": replace(
        _published(2560, 6912, 30, 20),
        num_kv_heads=5,
        vocab_size=128256,
        rope_theta=500000.0,
        activation="relu2",
        max_context=4096,
        bos_token_id=128000,
        eos_token_ids=(128001, 128009),
    ),
    # google/gemma-3-1b
    "gemma3-1b": replace(
        _published(1152, 6912, 26, 4),
        num_kv_heads=1,
        head_dim=256,
        vocab_size=262144,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        activation="gelu",
        max_context=32768,
        bos_token_id=2,
        eos_token_ids=(1,),
        embedding_scale=1152**0.5,
        output_norms=True,
        local_layers=tuple(i for i in range(26) if (i + 1) % 6),
        local_rope_theta=10000.0,
        sliding_window=512,
        **_DENSE,
    ),
    # Qwen/Qwen3-0.6B
    "qwen3-0.6b": replace(
        _published(1024, 3072, 28, 16),
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151936,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_context=40960,
        bos_token_id=151643,
        eos_token_ids=(151645,),
        **_DENSE,
    ),
}


class RandomCheckpoint(Checkpoint):
    """A model that no one trained: same config and seed, same weights, on every machine.

    Codes are uniform over the three values. Scales keep activations near one: a matrix with K
    inputs has ``0.7 / sqrt(K)``, and the two that write to the residual stream are divided by
    ``sqrt(2 * layers)`` more, so that the stream does not grow with depth.

    Parameters
    ----------
    config : ModelConfig
        Any shape.
    seed : int
        Not negative.
    name : str
        What error messages and manifests call it.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, name: str = "random") -> None:
        super().__init__(name, config)
        self.seed = seed

    def ternary(self, layer: int, module: str) -> TernaryWeight:
        """Give one matrix; see `Checkpoint.ternary`."""
        if self.config.dense:
            return super().ternary(layer, module)
        rows, columns = self.config.module_shape(module)
        words = self._bits(layer, MODULES.index(module)).random_raw(-(-rows * columns // 8))
        raw = words.astype("<u8", copy=False).tobytes()
        codes = np.frombuffer(raw.translate(_CODE_OF_BYTE), np.int8, rows * columns)
        return TernaryWeight(codes.reshape(rows, columns), float(np.float32(self._scale(module))))

    def dense(self, layer: int, module: str) -> npt.NDArray[np.floating]:
        """Give one matrix, normal; see `Checkpoint.dense`."""
        if not self.config.dense:
            return super().dense(layer, module)
        rows, columns = self.config.module_shape(module)
        values = self._normal(layer, MODULES.index(module), rows * columns)
        return (self._scale(module) * values).astype(np.float16).reshape(rows, columns)

    def _scale(self, module: str) -> float:
        scale = 0.7 / self.config.module_shape(module)[1] ** 0.5
        if module in ("o_proj", "down_proj"):
            scale /= (2 * self.config.num_layers) ** 0.5
        return scale

    def norm(self, name: str) -> npt.NDArray[np.float32]:
        """Give one norm, near one but never all alike, so that a swapped norm shows."""
        size = self.config.norm_shapes()[name]
        return 1 + 0.1 * self._normal(zlib.crc32(name.encode()), size)

    def embedding(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.float16]:
        """Give token vectors, float16, normal; the same however the rows are sliced."""
        return self._table(0, rows)

    def head(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.float16]:
        """Give the output head's rows; the embedding where it is tied."""
        return self._table(0 if self.config.tied_head else 1, rows)

    def _table(self, table: int, rows: slice) -> npt.NDArray[np.float16]:
        start, stop, step = rows.indices(self.config.vocab_size)
        if step != 1:
            raise ValueError("rows are given as one contiguous slice")
        hidden = self.config.hidden_size
        result = np.empty((max(stop - start, 0), hidden), np.float16)
        for block in range(start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)):
            first = block * _BLOCK_ROWS
            low, high = max(start, first), min(stop, first + _BLOCK_ROWS)
            values = self._normal(table, block, _BLOCK_ROWS * hidden).reshape(_BLOCK_ROWS, hidden)
            result[low - start : high - start] = _EMBEDDING_STD * values[low - first : high - first]
        return result

    def _normal(self, *key_and_size: int) -> npt.NDArray[np.float32]:
        *key, size = key_and_size
        # A key of its own length never meets those of the ternary matrices.
        generator = np.random.Generator(self._bits(*key, 0, 0))
        return generator.standard_normal(size, np.float32)

    def _bits(self, *key: int) -> np.random.PCG64:
        return np.random.PCG64(np.random.SeedSequence((self.seed, len(key), *key)))


def open_random(name: str) -> RandomCheckpoint:
    """Open ``random:SIZE`` or ``random:SIZE:seed=N``; nothing is generated yet.

    Parameters
    ----------
    name : str
        `SIZE` is a key of `SHAPES`, in any case.

    Raises
    ------
    FabricError
        For an unknown size or a seed that is not a whole number.
    """
    _, size, *options = name.split(":")
    shapes = {key.lower(): key for key in SHAPES}
    if size.lower() not in shapes:
        raise FabricError(
            f"There is no random model of size {size!r}.",
            f"Choose one of: {', '.join(f'random:{key}' for key in SHAPES)}.",
        )
    seed = 0
    for option in options:
        key, _, value = option.partition("=")
        if key != "seed" or not value.isdecimal():
            raise FabricError(
                f"{option!r} in {name!r} is not an option of a random model.",
                f"Write the seed as random:{shapes[size.lower()]}:seed=3.",
            )
        seed = int(value)
    return RandomCheckpoint(SHAPES[shapes[size.lower()]], seed, name)
