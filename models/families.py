"""The families of checkpoints: one row says how a family is recognised, named and shaped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint import CheckpointError
from .config import ATTENTION_MODULES, MODULES, ModelConfig


@dataclass(frozen=True)
class Family:
    """What sets one family apart from the others in a Hugging Face folder.

    Parameters
    ----------
    name : str
        What `ModelConfig.family` says.
    architecture : str
        The class in config.json's ``architectures``; the case of letters matters.
    model_type : str or None
        config.json's ``model_type``, which decides where ``architectures`` is absent.
    activation, rope_theta, rms_norm_eps : str, float, float
        What holds where config.json is silent, as the family's own code has it.
    attention_sub_norm, ffn_sub_norm : str or None
        The layer's tensor in front of o_proj and down_proj, where the family has one.
    needs_quantization_config : bool
        Whether only config.json's ``quantization_config`` tells a BitNet from an ordinary model.
    linear : str
        ``dense`` where the linear layers are ordinary ones.
    head_norms : bool
        Whether queries and keys have norms, ``q_norm`` and ``k_norm``.
    output_norms : bool
        Whether what a block adds has a norm: there are four in a layer then.
    norm_offset : float
        Added to a stored norm's weight.
    scaled_embedding : bool
        Whether token vectors are multiplied by the root of their width.
    tied_head : bool
        Whether the head is the embedding where config.json is silent.
    """

    name: str
    architecture: str
    model_type: str | None
    activation: str
    rope_theta: float
    rms_norm_eps: float
    attention_sub_norm: str | None
    ffn_sub_norm: str | None
    needs_quantization_config: bool
    linear: str = "ternary"
    head_norms: bool = False
    output_norms: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    tied_head: bool = False

    def module_tensor(self, layer: int, module: str) -> str:
        """Give the tensor that holds a BitLinear's weight; `module` is one of `MODULES`."""
        block = "self_attn" if module in ATTENTION_MODULES else "mlp"
        return f"model.layers.{layer}.{block}.{module}.weight"

    def norm_tensor(self, name: str) -> str:
        """Give the tensor that holds a norm, by its name in `ModelConfig.norm_shapes`."""
        if name == "final_norm":
            return "model.norm.weight"
        _, layer, norm = name.split(".")
        tensor = {
            "input_norm": "input_layernorm",
            "post_attention_norm": "pre_feedforward_layernorm"
            if self.output_norms
            else "post_attention_layernorm",
            "query_norm": "self_attn.q_norm",
            "key_norm": "self_attn.k_norm",
            "attention_output_norm": "post_attention_layernorm",
            "ffn_output_norm": "post_feedforward_layernorm",
            "attention_sub_norm": self.attention_sub_norm,
            "ffn_sub_norm": self.ffn_sub_norm,
        }[norm]
        return f"model.layers.{layer}.{tensor}.weight"

    def tensor_shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Give every tensor that a checkpoint must hold, with its shape before packing."""
        table = (config.vocab_size, config.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: table}
        if not config.tied_head:
            shapes[HEAD] = table
        for layer in range(config.num_layers):
            for module in MODULES:
                shapes[self.module_tensor(layer, module)] = config.module_shape(module)
        norms = config.norm_shapes().items()
        return {**shapes, **{self.norm_tensor(name): (size,) for name, size in norms}}


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
MERGED_KEY = "bitfabric_merged"
"""In config.json: the linear layers were merged into floating point, and are no BitLinears."""

FAMILIES = (
    # microsoft/bitnet-b1.58-2B-4T, in transformers as BitNetForCausalLM.
    Family(
        name="bitnet",
        architecture="BitNetForCausalLM",
        model_type="bitnet",
        activation="relu2",
        rope_theta=500000.0,
        rms_norm_eps=1e-5,
        attention_sub_norm="self_attn.attn_sub_norm",
        ffn_sub_norm="mlp.ffn_sub_norm",
        needs_quantization_config=False,
    ),
    # 1bitLLM/bitnet_b1_58-{large,xl,3B}, with code of their own beside the weights; the model_type
    # there is "llama", so only the architecture tells.
    Family(
        name="1bitllm",
        architecture="BitnetForCausalLM",
        model_type=None,
        activation="silu",
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        attention_sub_norm="self_attn.inner_attn_ln",
        ffn_sub_norm="mlp.ffn_layernorm",
        needs_quantization_config=False,
    ),
    # tiiuae/Falcon3-*-1.58bit, tiiuae/Falcon-E-*, HF1BitLLM/Llama3-8B-1.58-*.
    Family(
        name="llama",
        architecture="LlamaForCausalLM",
        model_type="llama",
        activation="silu",
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        attention_sub_norm=None,
        ffn_sub_norm=None,
        needs_quantization_config=True,
    ),
    # google/gemma-3-270m and -1b: text alone, dense.
    Family(
        name="gemma3",
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        activation="gelu",
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        attention_sub_norm=None,
        ffn_sub_norm=None,
        needs_quantization_config=False,
        linear="dense",
        head_norms=True,
        output_norms=True,
        norm_offset=1.0,
        scaled_embedding=True,
        tied_head=True,
    ),
    # Qwen/Qwen3-0.6B and larger, dense.
    Family(
        name="qwen3",
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        activation="silu",
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        attention_sub_norm=None,
        ffn_sub_norm=None,
        needs_quantization_config=False,
        linear="dense",
        head_norms=True,
    ),
)


def find_family(config: Mapping[str, Any]) -> Family:
    """Find the row of a model from its config.json.

    Raises
    ------
    CheckpointError
        Where no row fits, or where the row's models are BitNet only with a quantisation
        configuration and there is none, or where the model no longer is one.
    """
    if config.get(MERGED_KEY):
        raise CheckpointError(
            "The model was merged into floating point: its linear layers are ternary no more.",
            "Compile the base and give the adapter to `fabric run`, or merge with --to ternary.",
        )
    architectures = config.get("architectures") or []
    model_type = config.get("model_type")
    for family in FAMILIES:
        by_type = not architectures and model_type is not None and family.model_type == model_type
        if family.architecture in architectures or by_type:
            break
    else:
        described = ", ".join(architectures) or f"model_type {model_type!r}"
        known = ", ".join(family.architecture for family in FAMILIES)
        raise CheckpointError(
            f"{described} is not a family that fabric knows.",
            f"Use a model of one of these architectures: {known}.",
        )
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if quantization and method != "bitnet":
        raise CheckpointError(
            f"The checkpoint is quantised by {method!r}, not as BitNet b1.58.",
            'Use a checkpoint whose quantization_config says "quant_method": "bitnet".',
        )
    if family.needs_quantization_config and not quantization:
        raise CheckpointError(
            f"Nothing in config.json says that this {family.architecture} is a BitNet.",
            "Use the packed revision of the model; where its weights are BitNet masters, add "
            '"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", '
            '"quantization_mode": "online"} to config.json.',
        )
    return family
