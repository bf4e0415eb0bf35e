"""LoRA adapters on disk, in the form that `peft` reads and writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..targets import FabricError
from .files import atomic_write, read_error
from .protocols import BundleLike, Tensors
from .tensorfile import read_tensors, write_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."
_SUFFIX = ".weight"
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class AdapterError(FabricError):
    """An adapter cannot be read, or does not fit the bundle."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a bundle's model, of any rank.

    Parameters
    ----------
    folder : Path
        Where it was read.
    tensors : dict of str to numpy.ndarray
        As the engine takes them: ``model.layers.0.self_attn.q_proj.lora_A`` float32 [rank, in],
        ``….lora_B`` float32 [out, rank].
    scale : float
        ``alpha / rank``, or ``alpha / sqrt(rank)`` for rsLoRA, times the weight in a mixture.
    rank : int
    """

    folder: Path
    tensors: Tensors
    scale: float
    rank: int

    def fitted(self, bundle: BundleLike) -> Tensors:
        """Give the same adapter as the training engine holds one: of the rank and scale compiled.

        A smaller rank is filled up with zeros, which change nothing.

        Raises
        ------
        AdapterError
            Where the rank is larger than the one compiled.
        """
        rank, ratio = int(bundle.lora["rank"]), np.float32(self.scale / float(bundle.lora["scale"]))
        if self.rank > rank:
            raise AdapterError(
                f"The adapter in {self.folder} has rank {self.rank}, and the bundle was compiled "
                f"for {rank}.",
                f"Compile the model again with --lora-rank {self.rank}.",
            )
        missing = rank - self.rank
        return {
            name: np.pad(tensor * ratio, ((0, 0), (0, missing)))
            if name.endswith("lora_B")
            else np.pad(tensor, ((0, missing), (0, 0)))
            for name, tensor in self.tensors.items()
        }


def save_adapter(
    folder: Path, tensors: Tensors, bundle: BundleLike, provenance: Mapping[str, Any]
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, each atomically.

    Parameters
    ----------
    folder : Path
    tensors : dict of str to numpy.ndarray
        As `Adapter.tensors`.
    bundle : BundleLike
        What the adapter was trained on.
    provenance : mapping
        Where the adapter comes from, written as JSON into the file's metadata. It must not hold
        a time or a speed: the same training gives the same bytes.

    Raises
    ------
    FileError
        Where the disk is full; the old files are then intact.
    """
    with atomic_write(folder / CONFIG_FILE) as file:
        file.write(json.dumps(_peft_config(bundle), indent=2).encode() + b"\n")
    write_tensors(
        folder / WEIGHTS_FILE,
        {f"{_PREFIX}{name}{_SUFFIX}": tensors[name] for name in sorted(tensors)},
        {"format": "pt", "bitfabric": json.dumps(provenance, sort_keys=True)},
    )


def _peft_config(bundle: BundleLike) -> dict[str, Any]:
    """Give the fields of adapter_config.json (PEFT's LoraConfig)."""
    lora = bundle.lora
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model_name(bundle),
        "r": int(lora["rank"]),
        "lora_alpha": float(lora["alpha"]),
        "lora_dropout": float(lora["dropout"]),
        "use_rslora": bool(lora["rslora"]),
        "target_modules": list(lora["modules"]),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def model_name(bundle: BundleLike) -> str:
    """Give the name of the model that the bundle was compiled from."""
    model = bundle.manifest.get("model", "")
    return str(model.get("name", "") if isinstance(model, Mapping) else model)


def target_name(bundle: BundleLike) -> str:
    """Give the name of the target that the bundle was compiled for."""
    target = bundle.manifest.get("target", "")
    return str(target.get("name", "") if isinstance(target, Mapping) else target)


def load_adapter(name: str, bundle: BundleLike) -> Adapter:
    """Read an adapter.

    Modules of the bundle that the adapter leaves alone get zeros, which change nothing.

    Parameters
    ----------
    name : str
        A folder, or ``folder:weight`` for a mixture, such as ``style/:0.5``.
    bundle : BundleLike

    Raises
    ------
    AdapterError
        Where it is no LoRA adapter, or its modules or shapes do not fit the bundle.
    FileError
        Where it cannot be read.
    """
    folder, weight = split_weight(name)
    config = _read_config(folder)
    rank = int(config["r"])
    expected = adapter_shapes(bundle, rank)
    found, _ = read_tensors(folder / WEIGHTS_FILE)
    given = {_engine_name(key): tensor for key, tensor in found.items()}
    for key, tensor in given.items():
        if key not in expected:
            raise AdapterError(
                f"The adapter in {folder} changes {key}, which the bundle has no place for.",
                "Compile the model with every one of the adapter's modules in --lora-modules.",
            )
        if tensor.shape != expected[key]:
            raise AdapterError(
                f"{key} in {folder} has the shape {list(tensor.shape)}, and the model needs "
                f"{list(expected[key])}.",
                "Use an adapter that was trained on this model.",
            )
    tensors = {
        key: np.asarray(given[key], np.float32) if key in given else np.zeros(shape, np.float32)
        for key, shape in expected.items()
    }
    alpha = float(config.get("lora_alpha", rank))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapter(folder, tensors, scale * weight, rank)


def split_weight(name: str) -> tuple[Path, float]:
    """Split ``folder:0.5`` into the folder and its weight, 1.0 where there is none.

    Raises
    ------
    AdapterError
        Where there is no such folder.
    """
    folder, colon, number = name.rpartition(":")
    weight = 1.0
    if colon and folder and not Path(name).exists():
        try:
            name, weight = folder, float(number)
        except ValueError:
            weight = 1.0
    if not math.isfinite(weight):
        raise AdapterError(f"{number} is no weight for an adapter.", "Use one such as 0.5.")
    path = Path(name)
    if not (path / WEIGHTS_FILE).is_file():
        raise AdapterError(
            f"There is no adapter in {path} (no {WEIGHTS_FILE}).",
            "Train one with --train, or name the folder of one with --adapter.",
        )
    return path, weight


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
    refused = {
        "use_dora": "is a DoRA adapter",
        "modules_to_save": "also replaces whole modules",
        "rank_pattern": "has a rank of its own for some modules",
        "alpha_pattern": "has an alpha of its own for some modules",
        "trainable_token_indices": "also changes the embedding",
    }
    for field, words in refused.items():
        if config.get(field):
            raise AdapterError(
                f"The adapter in {folder} {words} (`{field}`).", "Use a plain LoRA adapter."
            )
    if config.get("bias", "none") != "none":
        raise AdapterError(f"The adapter in {folder} also has biases.", "Use one without.")
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        raise AdapterError(f"{path} gives no rank (`r`).", "Restore the file.")
    return config


def _engine_name(key: str) -> str:
    return key.removeprefix(_PREFIX).removesuffix(_SUFFIX)


def adapter_shapes(bundle: BundleLike, rank: int) -> dict[str, tuple[int, int]]:
    """Give the shape of every tensor of an adapter, by the engine's names, in their order."""
    config = bundle.config
    hidden, ffn = int(config["hidden_size"]), int(config["intermediate_size"])
    attention = int(config["num_heads"]) * int(config["head_dim"])
    kv = int(config["num_kv_heads"]) * int(config["head_dim"])
    sizes = {
        "q_proj": (attention, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, attention),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }
    shapes = {}
    for layer in range(int(config["num_layers"])):
        for module in bundle.lora["modules"]:
            outputs, inputs = sizes[module]
            part = "self_attn" if module in _ATTENTION else "mlp"
            name = f"model.layers.{layer}.{part}.{module}"
            shapes[f"{name}.lora_A"] = (rank, inputs)
            shapes[f"{name}.lora_B"] = (outputs, rank)
    return shapes
