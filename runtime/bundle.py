"""Opening a bundle: every file is checked before anything runs, then mapped, never copied."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from ..targets import FabricError, get_target, host_cpu, this_host
from ..targets.manifest import MANIFEST, SCHEMA, digest, sha256

RECOMPILE = "Compile it again: fabric compile MODEL --target cpu -o {path}"


class BundleError(FabricError):
    """A bundle that can't be used: missing, damaged, foreign or from a newer version."""


@dataclass(frozen=True)
class Bundle:
    """An open bundle.

    Attributes
    ----------
    path : pathlib.Path
        The folder.
    manifest : dict
        The whole of ``manifest.json``.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        """The kind of device that it runs on: ``"cpu"``, ``"opencl"``, ``"vulkan"``."""
        return self.manifest["target"]["device"]

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration."""
        return self.manifest["model"]["config"]

    @property
    def lora(self) -> dict[str, Any]:
        """rank, alpha, scale, modules, dropout, rslora."""
        return self.manifest["lora"]

    @property
    def context(self) -> int:
        """Tokens of a training row."""
        return self.manifest["training"]["context"]

    @property
    def micro_batch(self) -> int:
        """Rows of one micro-batch."""
        return self.manifest["training"]["micro_batch"]

    @property
    def module_path(self) -> Path:
        """The compiled module."""
        return self.path / "module.so"

    @property
    def tokenizer_path(self) -> Path | None:
        """``tokenizer.json``, where the model has one."""
        path = self.path / "tokenizer" / "tokenizer.json"
        return path if path.is_file() else None

    @cached_property
    def _raw(self) -> list[np.ndarray]:
        # Copy on write: DLPack takes no read-only array, and nothing ever writes to it.
        return [
            np.memmap(self.path / entry["file"], np.uint8, mode="c")
            for entry in self.manifest["weights"]
        ]

    @cached_property
    def _files(self) -> list[dict[str, np.ndarray]]:
        entries = self.manifest["weights"]
        return [tensors_of(raw, entry) for raw, entry in zip(self._raw, entries, strict=True)]

    def weight_file(self, index: int) -> tuple[Path, np.ndarray]:
        """Return a weight file, the ends' first and then each layer's, and its mapped bytes."""
        return self.path / self.manifest["weights"][index]["file"], self._raw[index]

    @property
    def ends(self) -> dict[str, np.ndarray]:
        """Embedding, final norm and head, mapped from the file, by name."""
        return self._files[0]

    @property
    def layers(self) -> list[dict[str, np.ndarray]]:
        """The tensors of each layer, mapped from the files, by name."""
        return self._files[1:]


def tensors_of(raw: np.ndarray, entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the tensors of a weight file's bytes, as the manifest lists them, by name."""
    tensors = {}
    for spec in entry["tensors"]:
        dtype, shape = np.dtype(spec["dtype"]), tuple(spec["shape"])
        end = spec["offset"] + int(np.prod(shape)) * dtype.itemsize
        tensors[spec["name"]] = raw[spec["offset"] : end].view(dtype).reshape(shape)
    return tensors


def open_bundle(path: str | Path, foreign: bool = False) -> Bundle:
    """Open a bundle by its folder or its ``module.so``.

    Parameters
    ----------
    path : str or pathlib.Path
        The folder, or the module in it.
    foreign : bool
        Whether one for another kind of machine will do, to be looked at.

    Raises
    ------
    BundleError
        If it is missing, newer than this program, truncated, altered, or made for a processor
        that this machine is not.
    """
    folder, manifest = _folder(path), read_manifest(path)
    try:
        _check_files(folder, manifest)
        _check_weights(folder, manifest)
        if not foreign:
            check_target(folder, manifest)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BundleError(
            f"{folder / MANIFEST} does not describe a bundle: {error!r}.",
            RECOMPILE.format(path=folder),
        ) from error
    return Bundle(folder, manifest)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a bundle's manifest, for any machine, without looking at the other files.

    Raises
    ------
    BundleError
        If it is no bundle, or its manifest is altered or newer than this program.
    """
    folder = _folder(path)
    again, file = RECOMPILE.format(path=folder), folder / MANIFEST
    if not file.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.", again)
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file} is not readable as a manifest: {error}.", again) from error
    if not isinstance(schema, int) or schema > SCHEMA:
        raise BundleError(
            f"{folder} was written by a newer version (schema {schema}, this program knows "
            f"{SCHEMA}).",
            "Upgrade: pip install --upgrade bitfabric",
        )
    if schema < SCHEMA:
        raise BundleError(f"{folder} was written by an older version (schema {schema}).", again)
    if manifest.get("digest") != digest(manifest):
        raise BundleError(f"{file} was changed after it was written.", again)
    return manifest


def _folder(path: str | Path) -> Path:
    """Return a bundle's folder, of which the path may name the module."""
    path = Path(path)
    return path.parent if path.name == "module.so" else path


def _check_files(folder: Path, manifest: dict[str, Any]) -> None:
    again = RECOMPILE.format(path=folder)
    for name, entry in manifest["files"].items():
        file = folder / name
        if ".." in file.relative_to(folder).parts:
            raise ValueError(f"{name} lies outside the bundle")
        if not file.is_file():
            raise BundleError(f"{folder} is incomplete: {name} is missing.", again)
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise BundleError(
                f"{file} has {size} bytes where the manifest says {entry['bytes']}.", again
            )
        if sha256(file) != entry["sha256"]:
            raise BundleError(f"{file} was altered: its SHA-256 is not the manifest's.", again)


def _check_weights(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse tensors that do not lie inside their hashed file, before anything is mapped."""
    for key in ("config", "name"):
        manifest["model"][key]
    for key in ("context", "micro_batch"):
        int(manifest["training"][key])
    if len(manifest["weights"]) != 1 + manifest["model"]["config"]["num_layers"]:
        raise ValueError("the number of weight files is not the number of layers and one")
    for entry in manifest["weights"]:
        size = manifest["files"][entry["file"]]["bytes"]
        for spec in entry["tensors"]:
            shape, offset = [index(extent) for extent in spec["shape"]], index(spec["offset"])
            end = offset + math.prod(shape) * np.dtype(spec["dtype"]).itemsize
            if offset < 0 or min(shape, default=0) < 0 or end > size:
                raise ValueError(f"{spec['name']} lies outside {entry['file']}")


def check_target(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse a bundle whose code this machine's processor does not run.

    Raises
    ------
    BundleError
        If it was made for another kind of processor or system.
    """
    target, here = manifest["target"], host_cpu()
    triple, name = target["host"], target["name"]
    # What a device lacks is told when it is opened; a processor is known here.
    missing = sorted(set(target["features"]) - here.features) if target["device"] == "cpu" else []
    architecture, _, system = this_host().partition("-")
    if not triple.startswith(architecture) or system.split("-")[0] not in triple or missing:
        lacks = f", which lacks {', '.join(missing)}" if missing else ""
        made = f"{name} on {triple}" if target["device"] != "cpu" else name
        again = f"--target {get_target('cpu').name if target['device'] == 'cpu' else name}"
        raise BundleError(
            f"{folder} was compiled for {made}; this machine is {here.name}{lacks}.",
            f"Compile it for this machine: fabric compile MODEL {again}",
        )
