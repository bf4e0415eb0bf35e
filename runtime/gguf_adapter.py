"""Adapters as GGUF, in the form that llama.cpp and its relatives load.

``blk.0.attn_q.weight.lora_a`` is PEFT's lora_A [rank, in] and ``….lora_b`` its lora_B [out, rank];
the scale is ``adapter.lora.alpha / rank``, and 1 where there is no alpha. Models of the
architecture ``llama`` rotate neighbouring pairs of a head's values, where the Hugging Face layout
rotates its halves: the rows of q's and k's weights, and so of their lora_B, stand interleaved.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .gguf_base import LLAMA, Base, architecture_of, require_architecture
from .gguf_file import GgufFile, write_gguf
from .low_rank import AdapterError, LowRank, split_name, tensor_name

__all__ = ["interleave", "read_gguf_adapter", "separate", "write_gguf_adapter"]

NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_MODULES = {name: module for module, name in NAMES.items()}
_HEADS = {"q_proj": "num_heads", "k_proj": "num_kv_heads"}
_ORIGIN = "bitfabric.adapter"


def read_gguf_adapter(path: Path, base: Base | None = None) -> LowRank:
    """Read an adapter, its rows in the Hugging Face order.

    Parameters
    ----------
    path : Path
    base : Base or None
        The model; only needed where q's and k's rows are interleaved and the file does not say in
        how many heads.

    Raises
    ------
    AdapterError
        Where it is no LoRA adapter, or not one of this model, or the number of heads is missing.
    FileError
        Where it cannot be read.
    """
    file = GgufFile(path)
    kinds = file.metadata.get("general.type"), file.metadata.get("adapter.type")
    if kinds != ("adapter", "lora") or "adapter.alora.invocation_tokens" in file.metadata:
        raise AdapterError(
            f"{path} is a GGUF file but no LoRA adapter.",
            "Name an adapter; a model is what `fabric compile` takes.",
        )
    architecture = architecture_of(file)
    if base is not None:
        require_architecture(path, architecture, base)
    tensors = {_engine_name(path, name): file.floats(name) for name in file.tensors}
    rank = next((len(t) for name, t in tensors.items() if name.endswith("lora_A")), 1)
    alpha = file.metadata.get("adapter.lora.alpha", 0.0)
    alpha = float(alpha if isinstance(alpha, (int, float)) else 0.0) or float(rank)
    adapter = LowRank(path, tensors, rank, alpha, base=_text(file, "general.base_model.0.name"))
    adapter = _as_it_was(adapter, _text(file, _ORIGIN)).check()
    if architecture == LLAMA:
        adapter = replace(adapter, tensors=_reordered(adapter, _heads(file, adapter, base), False))
    return adapter


def write_gguf_adapter(path: Path, adapter: LowRank, base: Base) -> None:
    """Write an adapter atomically, in float32.

    rsLoRA's scale becomes that of an alpha which is larger by sqrt(rank), since GGUF knows no
    other scale than alpha / rank; what the adapter's own settings were stands beside it, so that
    a conversion back gives them again.

    Parameters
    ----------
    path : Path
    adapter : LowRank
    base : Base
        The model that the adapter is for.

    Raises
    ------
    AdapterError
        Where the adapter does not fit the model.
    FileError
        Where the disk is full or the file cannot be written.
    """
    tensors = adapter.tensors
    if base.architecture == LLAMA:
        tensors = _reordered(adapter, base.config, True)
    named = {}
    for layer, module in adapter.places:
        for factor in "AB":
            name = f"blk.{layer}.{NAMES[module]}.weight.lora_{factor.lower()}"
            named[name] = tensors[tensor_name(layer, module, factor)]
    origin = {
        "alpha": adapter.alpha,
        "rslora": adapter.rslora,
        "dropout": adapter.dropout,
        "base": adapter.base,
        "provenance": adapter.provenance,
    }
    metadata: dict[str, Any] = {
        "general.architecture": base.architecture,
        "general.type": "adapter",
        "general.name": adapter.path.name or "adapter",
        "general.file_type": 0,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(_gguf_alpha(adapter)),
        f"{base.architecture}.attention.head_count": int(base.config["num_heads"]),
        f"{base.architecture}.attention.head_count_kv": int(base.config["num_kv_heads"]),
        _ORIGIN: json.dumps(origin, sort_keys=True),
    }
    if adapter.base:
        metadata["general.base_model.count"] = 1
        metadata["general.base_model.0.name"] = adapter.base
    write_gguf(path, metadata, named)


def interleave(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Put a head's halves (x₀…x₍d/2₎₋₁, y₀…) as pairs (x₀, y₀, x₁, y₁, …), row by row."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return halves.transpose(0, 2, 1, 3).reshape(rows.shape)


def separate(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo `interleave`."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.transpose(0, 2, 1, 3).reshape(rows.shape)


def _reordered(
    adapter: LowRank, config: Mapping[str, Any], to_gguf: bool
) -> dict[str, npt.NDArray[np.float32]]:
    """Give an adapter's tensors with the rows of q's and k's lora_B in the other order."""
    tensors = dict(adapter.tensors)
    for name, tensor in tensors.items():
        _, module, factor = split_name(name)
        if factor == "A" or module not in _HEADS:
            continue
        heads = int(config[_HEADS[module]])
        if heads < 1 or tensor.shape[0] % (2 * heads):
            raise AdapterError(
                f"{name} in {adapter.path} has {tensor.shape[0]} rows, which {heads} heads cannot "
                "share.",
                "Use the model that the adapter was trained on.",
            )
        tensors[name] = (interleave if to_gguf else separate)(tensor, heads)
    return tensors


def _heads(file: GgufFile, adapter: LowRank, base: Base | None) -> Mapping[str, Any]:
    """Give the numbers of heads: from the model, or as the adapter's file says."""
    if base is not None:
        return base.config
    heads = file.metadata.get(f"{LLAMA}.attention.head_count")
    kv_heads = file.metadata.get(f"{LLAMA}.attention.head_count_kv", heads)
    if isinstance(heads, int) and isinstance(kv_heads, int):
        return {"num_heads": heads, "num_kv_heads": kv_heads}
    if not set(_HEADS).intersection(adapter.modules):
        return {}
    raise AdapterError(
        f"{adapter.path} is for a llama model and changes q_proj or k_proj, whose rows stand in "
        "an order that depends on the number of heads, which the file does not say.",
        "Name the model with --base: its folder, its bundle or its GGUF file.",
    )


def _engine_name(path: Path, name: str) -> str:
    """Turn ``blk.0.attn_q.weight.lora_a`` into the engines' name."""
    parts = name.split(".")
    known = len(parts) == 5 and parts[0] == "blk" and parts[2] in _MODULES
    known = known and parts[1].isdecimal() and parts[3] == "weight"
    if not known or parts[4] not in ("lora_a", "lora_b"):
        raise AdapterError(
            f"{path} changes {name}, which is none of a layer's linear modules.",
            f"Use an adapter of these only: {', '.join(_MODULES)}.",
        )
    return tensor_name(int(parts[1]), _MODULES[parts[2]], parts[4][-1].upper())


def _gguf_alpha(adapter: LowRank) -> np.float32:
    """Give the alpha whose alpha / rank is the adapter's scale."""
    return np.float32(adapter.alpha * (math.sqrt(adapter.rank) if adapter.rslora else 1.0))


def _as_it_was(adapter: LowRank, origin: str) -> LowRank:
    """Restore what GGUF has no place for, where it agrees with what GGUF does say."""
    try:
        values = json.loads(origin)
        restored = replace(
            adapter,
            alpha=float(values["alpha"]),
            rslora=bool(values["rslora"]),
            dropout=float(values["dropout"]),
            base=str(values["base"]),
            provenance=str(values["provenance"]),
        )
    except (ValueError, KeyError, TypeError):
        return adapter
    return restored if _gguf_alpha(restored) == np.float32(adapter.alpha) else adapter


def _text(file: GgufFile, key: str) -> str:
    value = file.metadata.get(key)
    return value if isinstance(value, str) else ""
