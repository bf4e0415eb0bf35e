"""The model that a GGUF adapter is for: its architecture's name, and its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gguf_file import GgufFile
from .low_rank import AdapterError

LLAMA = "llama"
# The ones with norms inside the block: llama.cpp's, and those of bitnet.cpp for 2B-4T.
_BITNET = ("bitnet", "bitnet-b1.58", "bitnet-25")
ARCHITECTURES = (*_BITNET, LLAMA)


@dataclass(frozen=True)
class Base:
    """What must be known of the model that an adapter changes.

    Parameters
    ----------
    architecture : str
        GGUF's ``general.architecture``.
    config : mapping
        num_heads and num_kv_heads, and the rest of the shape where it is known.
    """

    architecture: str
    config: Mapping[str, Any]


def base_of_config(config: Mapping[str, Any]) -> Base:
    """Give the base for a model's configuration, as in a bundle's manifest.

    Its architecture is what `fabric export` calls such a model, if it is not told otherwise.
    """
    return Base(_BITNET[0] if config.get("attention_sub_norm") else LLAMA, config)


def base_of_gguf(path: Path) -> Base:
    """Give the base for a model's GGUF file, of which only the header is read.

    Raises
    ------
    AdapterError
        Where it is no model of an architecture that fabric knows.
    FileError
        Where it cannot be read.
    """
    file = GgufFile(path)
    architecture = architecture_of(file)
    if file.metadata.get("general.type", "model") != "model":
        raise AdapterError(
            f"{path} holds no model but the type {file.metadata['general.type']!r}.",
            "Name the model that the adapter was trained on.",
        )
    keys = {
        "num_layers": "block_count",
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_heads": "attention.head_count",
        "num_kv_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
    }
    values = {name: file.metadata.get(f"{architecture}.{key}") for name, key in keys.items()}
    values["num_kv_heads"] = values["num_kv_heads"] or values["num_heads"]
    if not values["head_dim"] and values["hidden_size"] and values["num_heads"]:
        values["head_dim"] = values["hidden_size"] // values["num_heads"]
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise AdapterError(
                f"{path} does not say {architecture}.{keys[name]}.",
                "Use a GGUF file with the whole metadata of a model.",
            )
    return Base(architecture, values)


def architecture_of(file: GgufFile) -> str:
    """Give a file's architecture.

    Raises
    ------
    AdapterError
        Where it is none that fabric knows.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise AdapterError(
            f"{file.path} is of the architecture {architecture!r}, which fabric does not know.",
            f"Known are {', '.join(ARCHITECTURES)}.",
        )
    return str(architecture)


def require_architecture(path: Path, architecture: str, base: Base) -> None:
    """Refuse an adapter of a model with norms inside the block for one without, and the reverse.

    The names of those with norms are used loosely: they all have the same tensors.

    Raises
    ------
    AdapterError
    """
    if (architecture == LLAMA) != (base.architecture == LLAMA):
        raise AdapterError(
            f"{path} is for a model of the architecture {architecture}, and this one is of "
            f"{base.architecture}.",
            "Use an adapter that was trained on this model.",
        )
