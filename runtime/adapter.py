"""Adapters for a bundle: read from PEFT's folders or GGUF files, weighed, fitted, saved."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import sha256
from .gguf_adapter import read_gguf_adapter
from .gguf_base import Base, base_of_config
from .gguf_file import is_gguf
from .low_rank import AdapterError, LowRank
from .low_rank import adapter_shapes as shapes_of
from .peft_adapter import CONFIG_FILE, WEIGHTS_FILE, is_peft, read_peft, write_peft
from .protocols import BundleLike, Tensors

__all__ = [
    "Adapter",
    "AdapterError",
    "adapter_shapes",
    "fingerprint",
    "load_adapter",
    "read_adapter",
    "save_adapter",
    "split_weight",
]


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

    def trainable(self, bundle: BundleLike, fresh: Tensors) -> Tensors:
        """Give the same adapter as a start for training.

        Directions that it does not use, because its rank is smaller or it leaves a module alone,
        would have no gradient if both their factors were zero: they get a fresh A.

        Parameters
        ----------
        bundle : BundleLike
        fresh : dict of str to numpy.ndarray
            A new adapter of the bundle's, with B zero.

        Raises
        ------
        AdapterError
            As `fitted` does.
        """
        tensors = self.fitted(bundle)
        for name in [name for name in tensors if name.endswith("lora_A")]:
            a, b = tensors[name], tensors[f"{name[:-1]}B"]
            used = np.logical_or(a.any(axis=1), b.any(axis=0))
            tensors[name] = np.where(used.reshape(-1, 1), a, fresh[name])
        return tensors


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
    lora = bundle.lora
    adapter = LowRank(
        path=folder,
        tensors=tensors,
        rank=int(lora["rank"]),
        alpha=float(lora["alpha"]),
        rslora=bool(lora["rslora"]),
        dropout=float(lora["dropout"]),
        base=model_name(bundle),
        provenance=json.dumps(provenance, sort_keys=True),
    )
    write_peft(folder, adapter, list(lora["modules"]))


def model_name(bundle: BundleLike) -> str:
    """Give the name of the model that the bundle was compiled from."""
    model = bundle.manifest.get("model", "")
    return str(model.get("name", "") if isinstance(model, Mapping) else model)


def target_name(bundle: BundleLike) -> str:
    """Give the name of the target that the bundle was compiled for."""
    target = bundle.manifest.get("target", "")
    return str(target.get("name", "") if isinstance(target, Mapping) else target)


def load_adapter(name: str, bundle: BundleLike) -> Adapter:
    """Read an adapter for a bundle.

    Modules of the bundle that the adapter leaves alone get zeros, which change nothing.

    Parameters
    ----------
    name : str
        A folder of PEFT's or a GGUF file, or one with a weight, such as ``style/:0.5``.
    bundle : BundleLike

    Raises
    ------
    AdapterError
        Where it is no LoRA adapter, or its modules or shapes do not fit the bundle.
    FileError
        Where it cannot be read.
    """
    path, weight = split_weight(name)
    found = read_adapter(path, base_of_config(bundle.config))
    shapes = adapter_shapes(bundle, found.rank)
    found.require_fit(
        shapes, "Compile the model with every one of the adapter's modules in --lora-modules."
    )
    tensors = {
        key: found.tensors[key] if key in found.tensors else np.zeros(shape, np.float32)
        for key, shape in shapes.items()
    }
    return Adapter(path, tensors, found.scale * weight, found.rank)


def read_adapter(path: Path, base: Base | None = None) -> LowRank:
    """Read an adapter in either format.

    Parameters
    ----------
    path : Path
        A folder of PEFT's or a GGUF file.
    base : Base or None
        The model it is for, as far as it is known; some GGUF files cannot be read without.

    Raises
    ------
    AdapterError
        Where it is no LoRA adapter.
    FileError
        Where it cannot be read.
    """
    return read_gguf_adapter(path, base) if is_gguf(path) else read_peft(path)


def fingerprint(name: str) -> str:
    """Hash an adapter and its weight, 64 hexadecimal digits.

    Raises
    ------
    AdapterError, FileError
        Where there is none, or it cannot be read.
    """
    path, weight = split_weight(name)
    parts = [path] if is_gguf(path) else [path / WEIGHTS_FILE, path / CONFIG_FILE]
    text = ":".join([*map(sha256, parts), repr(weight)])
    return hashlib.sha256(text.encode()).hexdigest()


def split_weight(name: str) -> tuple[Path, float]:
    """Split ``folder:0.5`` into the folder and its weight, 1.0 where there is none.

    Raises
    ------
    AdapterError
        Where there is no such adapter.
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
    if not is_peft(path) and not is_gguf(path):
        raise AdapterError(
            f"There is no adapter in {path} (no {WEIGHTS_FILE}, no GGUF file).",
            "Train one with --train, or name the folder or the .gguf file of one with --adapter.",
        )
    return path, weight


def adapter_shapes(bundle: BundleLike, rank: int) -> dict[str, tuple[int, int]]:
    """Give the shape of every tensor of a bundle's adapter, by the engine's names, in order."""
    return shapes_of(bundle.config, rank, list(bundle.lora["modules"]))
