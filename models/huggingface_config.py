"""From a Hugging Face config.json to a `ModelConfig`, refusing what would silently differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checkpoint import CheckpointError
from .config import ModelConfig
from .families import Family

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
    "gelu_pytorch_tanh": "gelu",
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_LOCAL_THETA, _PATTERN = 10000.0, 6
"""Gemma 3's rotary base of local layers, and of how many layers the last one is global."""
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
    ropes = _ropes(config)
    rope, layers = ropes[_GLOBAL], _size(config, "num_hidden_layers")
    local = _local_layers(family, config, layers)
    theta = config.get("rope_local_base_freq", _LOCAL_THETA)
    hidden_size, num_heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    activation = _activation(config) or family.activation
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return ModelConfig(
        family=family.name,
        hidden_size=hidden_size,
        intermediate_size=_size(config, "intermediate_size"),
        num_layers=layers,
        num_heads=num_heads,
        num_kv_heads=_size(config, "num_key_value_heads", num_heads),
        head_dim=_size(config, "head_dim", hidden_size // max(num_heads, 1)),
        vocab_size=_size(config, "vocab_size"),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", family.rope_theta))),
        rms_norm_eps=float(config.get("rms_norm_eps", family.rms_norm_eps)),
        activation=_ACTIVATIONS.get(activation, activation),
        attention_sub_norm=family.attention_sub_norm is not None,
        ffn_sub_norm=family.ffn_sub_norm is not None,
        tied_head=bool(config.get("tie_word_embeddings", family.tied_head)),
        max_context=_size(config, "max_position_embeddings", 2048),
        bos_token_id=config.get("bos_token_id", generation.get("bos_token_id")),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        linear=family.linear,
        head_norms=family.head_norms,
        output_norms=family.output_norms,
        embedding_scale=hidden_size**0.5 if family.scaled_embedding else 1.0,
        local_layers=local,
        local_rope_theta=float(ropes[_LOCAL].get("rope_theta", theta)) if local else 0.0,
        sliding_window=_size(config, "sliding_window") if local else 0,
    )


def _activation(config: Mapping[str, Any]) -> str | None:
    return config.get("hidden_act", config.get("hidden_activation"))


def _ropes(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the rotary parameters of each kind of layer; newer files have them apart."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if _GLOBAL in rope or _LOCAL in rope:
        return {kind: rope.get(kind) or {} for kind in (_GLOBAL, _LOCAL)}
    return {_GLOBAL: rope, _LOCAL: {}}


def _local_layers(family: Family, config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Return the layers that attend to a window; in files without a list every sixth is global."""
    if not family.output_norms:
        return ()
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", _PATTERN))
    every = [_GLOBAL if (i + 1) % pattern == 0 else _LOCAL for i in range(layers)]
    kinds = config.get("layer_types") or every
    return tuple(i for i, kind in enumerate(kinds) if kind == _LOCAL)


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
    ropes = _ropes(config)
    types = {r.get("rope_type", r.get("type", "default")) for r in ropes.values()}
    rope, rope_type = ropes[_GLOBAL], ", ".join(sorted(types - {"default"})) or "default"
    quantization = config.get("quantization_config") or {}
    kept = [
        module
        for module in quantization.get("modules_to_not_convert") or []
        if module.rpartition(".")[2] not in ("lm_head", "embed_tokens")
    ]
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    activation = _activation(config) or "silu"
    head_dim = config.get("head_dim")
    scalar = config.get("query_pre_attn_scalar", head_dim)
    linear_class = quantization.get("linear_class", "bitlinear")
    features = {
        "biases in attention (attention_bias)": config.get("attention_bias"),
        "biases in the MLP (mlp_bias)": config.get("mlp_bias"),
        f"rotary scaling of type {rope_type!r} (rope_scaling)": rope_type != "default",
        f"rotary positions on a part of each head (partial_rotary_factor {partial})": partial != 1,
        f"the gate activation {activation!r} (hidden_act)": activation not in _ACTIVATIONS,
        f"linear layers of the class {linear_class!r}": linear_class not in _LINEAR_CLASSES,
        "a limit on logits (softcapping)": config.get("final_logit_softcapping")
        or config.get("attn_logit_softcapping"),
        f"scores over the root of {scalar} (query_pre_attn_scalar)": scalar != head_dim,
        "attention to what follows (use_bidirectional_attention)": config.get(
            "use_bidirectional_attention"
        ),
        "windows of attention (use_sliding_window)": config.get("use_sliding_window"),
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
