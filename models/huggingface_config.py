"""From a Hugging Face config.json to a `ModelConfig`, refusing what would silently differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checkpoint import CheckpointError
from .config import ModelConfig
from .families import Family

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu2": "relu2"}
# transformers' two kinds of BitLinear: a stored scale divides in the first.
_LINEAR_CLASSES = ("bitlinear", "autobitlinear")


def model_config(
    family: Family, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> ModelConfig:
    """Read a model's architecture.

    Parameters
    ----------
    family : Family
        The model's row; gives what config.json leaves out.
    config, generation : mapping
        config.json and generation_config.json (empty where there is none); a generation stops at
        the tokens of the latter.

    Raises
    ------
    CheckpointError
        Where a number is missing, or the model needs a feature that fabric does not compute.
    FabricError
        Where the numbers contradict each other.
    """
    _refuse_unsupported(config)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    hidden_size, num_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    activation = config.get("hidden_act", family.activation)
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return ModelConfig(
        family=family.name,
        hidden_size=hidden_size,
        intermediate_size=_size(config, "intermediate_size"),
        num_layers=_size(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_size(config, "num_key_value_heads", num_heads),
        head_dim=_size(config, "head_dim", hidden_size // max(num_heads, 1)),
        vocab_size=_size(config, "vocab_size"),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", family.rope_theta))),
        rms_norm_eps=float(config.get("rms_norm_eps", family.rms_norm_eps)),
        activation=_ACTIVATIONS.get(activation, activation),
        attention_sub_norm=family.attention_sub_norm is not None,
        ffn_sub_norm=family.ffn_sub_norm is not None,
        tied_head=bool(config.get("tie_word_embeddings", False)),
        max_context=_size(config, "max_position_embeddings", 2048),
        bos_token_id=config.get("bos_token_id", generation.get("bos_token_id")),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    # bool is an int in Python, never in a model's shape.
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(
            f"config.json gives {key} as {value!r}, not as a whole number.",
            "Download the model's config.json again.",
        )
    return value


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    quantization = config.get("quantization_config") or {}
    kept = [
        module
        for module in quantization.get("modules_to_not_convert") or []
        if module.rpartition(".")[2] not in ("lm_head", "embed_tokens")
    ]
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    activation = config.get("hidden_act", "silu")
    linear_class = quantization.get("linear_class", "bitlinear")
    features = {
        "biases in attention (attention_bias)": config.get("attention_bias"),
        "biases in the MLP (mlp_bias)": config.get("mlp_bias"),
        f"rotary scaling of type {rope_type!r} (rope_scaling)": rope_type != "default",
        f"rotary positions on a part of each head (partial_rotary_factor {partial})": partial != 1,
        f"the gate activation {activation!r} (hidden_act)": activation not in _ACTIVATIONS,
        f"linear layers of the class {linear_class!r}": linear_class not in _LINEAR_CLASSES,
        "a norm inside every linear layer (use_rms_norm)": quantization.get("use_rms_norm"),
        f"linear layers that are not ternary (modules_to_not_convert {kept})": kept,
        "weights that are not ternary (weight_bits)": config.get("weight_bits", 1) != 1,
        "activations that are not 8 bits (input_bits)": config.get("input_bits", 8) != 8,
    }
    for feature, present in features.items():
        if present:
            raise CheckpointError(
                f"The model needs {feature}, which fabric does not compute.",
                "Use a model without it; see `docs/` for the families that are supported.",
            )
