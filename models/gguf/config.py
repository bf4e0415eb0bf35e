"""Between a GGUF file's metadata and a `ModelConfig`; what would silently differ is refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import ModelConfig
from .header import GGUFError, GGUFFile
from .names import ARCHITECTURES, EMBEDDING, HEAD, Architecture
from .tokenizer import begins_with_token

ACTIVATION_KEY = "hidden_activation"

# Keys of other computations; 0 or 1, as noted, mean the same as their absence.
_UNSUPPORTED = {
    "expert_count": 0,
    "attention.sliding_window": 0,
    "attention.scale": None,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "logit_scale": 1,
    "residual_scale": 1,
    "embedding_scale": 1,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "rope.scaling.factor": 1,
}
_LARGEST = 3e38
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_OTHER = "Use a model without it, or the model's Hugging Face folder."


def read_architecture(file: GGUFFile) -> Architecture:
    """Find what kind of model a file holds.

    Raises
    ------
    GGUFError
        Where it is no whole model, or one of an architecture that fabric does not know.
    """
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise GGUFError(
            f"{file.path} holds {str(kind)[:40]!r}, not a model.",
            "Give the base model's file; an adapter goes to `fabric run --adapter`.",
        )
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise GGUFError(
            f"{file.path} is one of {file.metadata['split.count']} parts of a model.",
            "Join the parts first: llama-gguf-split --merge FIRST_PART whole.gguf",
        )
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise GGUFError(
            f"{file.path} holds a model of the architecture {str(name)[:40]!r}, which is not a "
            "BitNet that fabric knows.",
            f"Use one of these architectures: {', '.join(ARCHITECTURES)}.",
        )
    return ARCHITECTURES[name]


def read_config(file: GGUFFile, architecture: Architecture) -> ModelConfig:
    """Read a model's architecture from the metadata and the shape of the embedding.

    Raises
    ------
    GGUFError
        Where a number is missing or of the wrong kind, or a feature is unsupported.
    FabricError
        Where the numbers contradict each other.
    """
    keys = _Keys(file, architecture.name)
    _refuse_unsupported(keys)
    table = file.tensors.get(EMBEDDING)
    if table is None or len(table.shape) != 2:
        raise GGUFError(f"{file.path} lacks the tensor {EMBEDDING}.", "Download it again.")
    layers = keys.integer("block_count")
    if not 0 < layers <= len(file.tensors):
        raise GGUFError(
            f"{file.path} claims {layers} layers but holds {len(file.tensors)} tensors.",
            "Download the file again; this copy is incomplete or damaged.",
        )
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(key, head_dim) != head_dim:
            raise keys.unsupported(key)
    activation = _activation(keys, architecture)
    silu_family = "1bitllm" if architecture.sub_norms else "llama"
    begin = keys.token("bos_token_id", table.shape[0])
    if not begins_with_token(file.metadata):
        begin = None
    ends = (keys.token(key, table.shape[0]) for key in _END_KEYS)
    return ModelConfig(
        family="bitnet" if activation == "relu2" else silu_family,
        hidden_size=hidden,
        intermediate_size=keys.integer("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=table.shape[0],
        rope_theta=keys.real("rope.freq_base", 10000.0),
        rms_norm_eps=keys.real("attention.layer_norm_rms_epsilon"),
        activation=activation,
        attention_sub_norm=architecture.sub_norms,
        ffn_sub_norm=architecture.sub_norms,
        tied_head=HEAD not in file.tensors,
        max_context=keys.integer("context_length", 2048),
        bos_token_id=begin,
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
    )


def write_config(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """Give the metadata from which `read_config`, and other programs, read `config`."""
    values: dict[str, Any] = {
        "context_length": config.max_context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
        "vocab_size": config.vocab_size,
    }
    if architecture.sub_norms:
        values[ACTIVATION_KEY] = config.activation
    return {f"{architecture.name}.{key}": value for key, value in values.items()}


def _activation(keys: _Keys, architecture: Architecture) -> str:
    stated = keys.get(ACTIVATION_KEY)
    if stated is None:
        return architecture.activation
    if stated not in ("silu", "relu2") or (
        architecture.fixed_activation and stated != architecture.activation
    ):
        raise keys.unsupported(ACTIVATION_KEY)
    return stated


def _refuse_unsupported(keys: _Keys) -> None:
    for key, neutral in _UNSUPPORTED.items():
        value = keys.get(key)
        if value is not None and (neutral is None or value != neutral):
            raise keys.unsupported(key)
    scaling = keys.get("rope.scaling.type")
    # The common converter writes "linear" with the factor 1 for every BitNet: no scaling.
    if scaling not in (None, "none", "linear"):
        raise keys.unsupported("rope.scaling.type")


class _Keys:
    """The keys of one architecture, with their kinds checked."""

    def __init__(self, file: GGUFFile, prefix: str) -> None:
        self._file, self._prefix = file, prefix

    def get(self, key: str) -> Any:
        return self._file.metadata.get(f"{self._prefix}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """Read a whole number; an array with one number for each layer must agree throughout."""
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(key, value, "a whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, value, "a number")
        # Beyond float32 there is nothing that a program could compute with.
        if not abs(value) <= _LARGEST:
            raise self.wrong(key, value, "a finite number")
        # The file holds float32; the shortest decimal that means it is what was written.
        return float(str(np.float32(value)))

    def token(self, key: str, vocabulary: int) -> int | None:
        value = self._file.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < vocabulary:
            raise self.wrong(key, value, f"a token below {vocabulary}")
        return value

    def wrong(self, key: str, value: Any, what: str) -> GGUFError:
        return GGUFError(
            f"{self._file.path} gives {self._prefix}.{key} as {str(value)[:40]}, not as {what}.",
            "Download or convert the file again.",
        )

    def unsupported(self, key: str) -> GGUFError:
        return GGUFError(
            f"The model sets {self._prefix}.{key} to {str(self.get(key))[:40]!r}, which fabric "
            "does not compute.",
            _OTHER,
        )
