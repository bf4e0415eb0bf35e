"""Adapters in the form that `peft` reads and writes: a JSON and a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .files import atomic_write, read_error
from .low_rank import MODULES, AdapterError, LowRank, tensor_name
from .protocols import Tensors
from .tensorfile import read_tensors, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."
_SUFFIX = ".weight"
_PROVENANCE = "bitfabric"


def is_peft(path: Path) -> bool:
    """Tell whether a folder holds an adapter of PEFT's."""
    return (path / WEIGHTS_FILE).is_file()


def read_peft(folder: Path) -> LowRank:
    """Read a folder.

    Raises
    ------
    AdapterError
        Where it is no plain LoRA adapter.
    FileError
        Where it cannot be read.
    """
    config = _read_config(folder)
    found, metadata = read_tensors(folder / WEIGHTS_FILE)
    rank = int(config["r"])
    return LowRank(
        path=folder,
        tensors={
            key.removeprefix(_PREFIX).removesuffix(_SUFFIX): np.asarray(tensor, np.float32)
            for key, tensor in found.items()
        },
        rank=rank,
        alpha=float(config.get("lora_alpha", rank)),
        rslora=bool(config.get("use_rslora")),
        dropout=float(config.get("lora_dropout") or 0.0),
        base=str(config.get("base_model_name_or_path") or ""),
        provenance=metadata.get(_PROVENANCE, ""),
    ).check()


def write_peft(folder: Path, adapter: LowRank, target_modules: list[str]) -> None:
    """Write adapter_config.json and adapter_model.safetensors, each atomically.

    The same adapter gives the same bytes.

    Parameters
    ----------
    folder : Path
    adapter : LowRank
    target_modules : list of str
        What PEFT is told to adapt (`target_modules`).

    Raises
    ------
    FileError
        Where the disk is full; the old files are then intact.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rslora,
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    with atomic_write(folder / CONFIG_FILE) as file:
        file.write(json.dumps(config, indent=2).encode() + b"\n")
    tensors: Tensors = adapter.tensors
    provenance = {_PROVENANCE: adapter.provenance} if adapter.provenance else {}
    write_tensors(
        folder / WEIGHTS_FILE,
        {f"{_PREFIX}{name}{_SUFFIX}": tensors[name] for name in sorted(tensors)},
        {"format": "pt", **provenance},
    )


def target_modules(adapter: LowRank, num_layers: int | None = None) -> list[str]:
    """Give what PEFT must be told to adapt: modules, or full paths where layers differ.

    Parameters
    ----------
    adapter : LowRank
    num_layers : int or None
        Layers of the model; as many as the adapter knows of by default.
    """
    places = adapter.places
    layers = range(num_layers or 1 + max(layer for layer, _ in places))
    modules = [module for module in MODULES if module in adapter.modules]
    if len(places) == len(layers) * len(modules):
        return modules
    return [tensor_name(layer, module, "A").removesuffix(".lora_A") for layer, module in places]


def _read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json and refuse what we cannot apply."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:
        raise AdapterError(f"{path} is not valid JSON: {error}.", "Restore the file.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f"{path} describes no LoRA adapter.", "Use a LoRA adapter.")
    _refuse_unsupported(folder, config)
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        raise AdapterError(f"{path} gives no rank (`r`).", "Restore the file.")
    for field in ("lora_alpha", "lora_dropout"):
        if not isinstance(config.get(field, 0), (int, float)):
            raise AdapterError(
                f"{path} gives {field} as {config[field]!r}, not as a number.", "Restore the file."
            )
    return config


def _refuse_unsupported(folder: Path, config: Mapping[str, Any]) -> None:
    refused = {
        "use_dora": "is a DoRA adapter",
        "modules_to_save": "also replaces whole modules",
        "rank_pattern": "has a rank of its own for some modules",
        "alpha_pattern": "has an alpha of its own for some modules",
        "trainable_token_indices": "also changes the embedding",
        "alora_invocation_tokens": "is switched on by tokens of the text",
        "fan_in_fan_out": "stores its factors transposed",
    }
    for field, words in refused.items():
        if config.get(field):
            raise AdapterError(
                f"The adapter in {folder} {words} (`{field}`).", "Use a plain LoRA adapter."
            )
    if config.get("bias", "none") != "none":
        raise AdapterError(f"The adapter in {folder} also has biases.", "Use one without.")
