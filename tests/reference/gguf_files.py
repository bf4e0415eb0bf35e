"""Tiny BitNets as Hugging Face folders and, by the package `gguf`, as GGUF files of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from bitfabric.models import MODULES, open_model
from bitfabric.models.config import ModelConfig
from gguf import GGMLQuantizationType as Type

from .folders import AUTOBITLINEAR, FAMILIES, SUB_NORMS, write_folder
from .torch_bitnet import module_path

GGUF_MODULES = dict(
    zip(
        MODULES,
        ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
        strict=True,
    )
)
ARCHITECTURES = {"bitnet": "bitnet-b1.58", "1bitllm": "bitnet", "llama": "llama"}
GROUPS = {"x86": 32, "arm": 16}


@dataclass
class Tiny:
    """A model by the numbers it was drawn with; the scales survive float16."""

    family: str
    changes: dict[str, Any]
    codes: dict[tuple[int, str], np.ndarray] = field(default_factory=dict)
    scales: dict[tuple[int, str], float] = field(default_factory=dict)
    others: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """config.json."""
        return {**FAMILIES[self.family], **self.changes}


def tiny(family: str, hidden: int = 256, ffn: int = 512, seed: int = 0, **changes: Any) -> Tiny:
    """Draw a model: ternary matrices, norms near one, normal tables that survive float16."""
    changes = {"hidden_size": hidden, "intermediate_size": ffn, "head_dim": hidden // 4, **changes}
    model = Tiny(family, changes)
    values = model.values
    generator = np.random.default_rng(seed)
    kv = values["num_key_value_heads"] * values["head_dim"]
    shapes = {
        "q_proj": (hidden, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, hidden),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }
    norms = {"model.norm": hidden}
    sub_norms = SUB_NORMS[family]
    for layer in range(values["num_hidden_layers"]):
        for module, shape in shapes.items():
            model.codes[layer, module] = generator.integers(-1, 2, shape, np.int8)
            scale = generator.uniform(0.5, 1.5) / shape[1] ** 0.5
            model.scales[layer, module] = float(np.float16(scale))
        prefix = f"model.layers.{layer}"
        norms[f"{prefix}.input_layernorm"] = norms[f"{prefix}.post_attention_layernorm"] = hidden
        if sub_norms[0]:
            norms[f"{prefix}.{sub_norms[0]}"] = hidden
            norms[f"{prefix}.{sub_norms[1]}"] = ffn
    tables = ["model.embed_tokens"] + ["lm_head"] * (not values["tie_word_embeddings"])
    for name in tables:
        table = generator.standard_normal((values["vocab_size"], hidden)) / 4
        model.others[f"{name}.weight"] = table.astype(np.float16).astype(np.float32)
    for name, size in norms.items():
        norm = 1 + generator.standard_normal(size) / 10
        model.others[f"{name}.weight"] = norm.astype(np.float32)
    return model


def write_hf(model: Tiny, folder: Path) -> Path:
    """Write the model as a packed Hugging Face folder."""
    tensors = {name: torch.as_tensor(value) for name, value in model.others.items()}
    for (layer, module), codes in model.codes.items():
        quarters = np.split((codes + 1).astype(np.uint8), 4)
        packed = sum((quarter << 2 * i for i, quarter in enumerate(quarters)), np.uint8(0))
        name = f"{module_path(layer, module)}.weight"
        tensors[name] = torch.as_tensor(packed.astype(np.uint8))
        tensors[f"{name}_scale"] = torch.tensor([model.scales[layer, module]])
    return write_folder(folder, model.family, tensors, AUTOBITLINEAR, **model.changes)


def config_of(model: Tiny, folder: Path) -> ModelConfig:
    """Give what the Hugging Face reader makes of the same model."""
    return open_model(str(write_hf(model, folder))).config


def pack_i2_s(codes: np.ndarray, scale: float, layout: str) -> np.ndarray:
    """Pack as bitnet.cpp does, one code after another."""
    group = GROUPS[layout]
    flat = codes.reshape(-1) + 1
    packed = np.zeros(flat.size // 4 + 32, np.uint8)
    for i, digit in enumerate(flat.tolist()):
        block, j = divmod(i, 4 * group)
        packed[block * group + j % group] |= digit << (6 - 2 * (j // group))
    packed[flat.size // 4 :][:4] = np.float32([scale]).view(np.uint8)
    return packed


def store(
    codes: np.ndarray, scale: float, storage: str
) -> tuple[np.ndarray, Type | int, tuple[int, ...] | None]:
    """Give a matrix's data, its type, and its shape where the data does not have it."""
    dense = codes.astype(np.float32) * np.float32(scale)
    if storage.startswith("I2_S"):
        layout = storage.partition("-")[2]
        return pack_i2_s(codes, scale, layout), 36, codes.shape
    kind = Type[storage]
    if kind in (Type.TQ1_0, Type.TQ2_0) and codes.shape[1] % 256:
        kind = Type.F16
    return gguf.quantize(dense, kind), kind, None


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of each head as the common converter does for the llama architecture."""
    size = len(rows) // heads
    order = [h * size + half * size // 2 + i for h in range(heads) for i in range(size // 2)
             for half in (0, 1)]  # fmt: skip
    return rows[order]


def write_gguf(
    model: Tiny,
    path: Path,
    storage: str = "TQ2_0",
    architecture: str | None = None,
    table: Type = Type.F16,
    metadata: Mapping[str, Any] | None = None,
    replace: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model with the package `gguf`.

    `metadata` adds or (with None) leaves out integers, floats and strings by their whole key;
    `replace` puts arrays, or (data, type, shape), in the place of tensors, or leaves them out.
    """
    values, architecture = model.values, architecture or ARCHITECTURES[model.family]
    writer = gguf.GGUFWriter(path, architecture)
    ready: dict[str, Any] = {
        f"{architecture}.{key}": value
        for key, value in {
            "context_length": values["max_position_embeddings"],
            "embedding_length": values["hidden_size"],
            "block_count": values["num_hidden_layers"],
            "feed_forward_length": values["intermediate_size"],
            "attention.head_count": values["num_attention_heads"],
            "attention.head_count_kv": values["num_key_value_heads"],
            "attention.layer_norm_rms_epsilon": values["rms_norm_eps"],
            "rope.freq_base": values["rope_theta"],
            "rope.dimension_count": values["head_dim"],
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 1.0,
        }.items()
    }
    ready |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    for key, value in {**ready, **(metadata or {})}.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32,
               bool: writer.add_bool, list: writer.add_array}  # fmt: skip
        if value is not None:
            add[type(value)](key, value)
    for name, stored in {
        **_tensors(model, architecture, storage, table),
        **(replace or {}),
    }.items():
        if stored is not None:
            data, kind, shape = stored if isinstance(stored, tuple) else (stored, None, None)
            _add(writer, name, data, kind, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(model: Tiny, architecture: str, storage: str, table: Type) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for name, value in model.others.items():
        if value.ndim == 2:
            kind = "output" if name == "lm_head.weight" else "token_embd"
            tensors[f"{kind}.weight"] = (gguf.quantize(value, table), table, None)
        else:
            tensors[_norm(name, model.family)] = value
    heads = {
        "q_proj": model.values["num_attention_heads"],
        "k_proj": model.values["num_key_value_heads"],
    }
    for (layer, module), codes in model.codes.items():
        if architecture == "llama" and module in heads:
            codes = permuted(codes, heads[module])
        name = f"blk.{layer}.{GGUF_MODULES[module]}.weight"
        tensors[name] = store(codes, model.scales[layer, module], storage)
    return tensors


def _norm(name: str, family: str) -> str:
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, *rest = name.removesuffix(".weight").split(".")
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        SUB_NORMS[family][0]: "attn_sub_norm",
        SUB_NORMS[family][1]: "ffn_sub_norm",
    }
    return f"blk.{layer}.{names['.'.join(rest)]}.weight"


def _add(
    writer: gguf.GGUFWriter,
    name: str,
    data: np.ndarray,
    kind: Type | int | None,
    shape: tuple[int, ...] | None,
) -> None:
    if shape is None:
        writer.add_tensor(name, data, raw_dtype=kind)
        return
    # The package checks shapes against the types it knows; the data goes in by the lower door.
    writer.add_tensor(name, data, raw_dtype=Type.I8)
    info = writer.tensors[-1][name]
    info.shape, info.dtype = list(shape), kind
