"""Writing a bundle: a temporary folder beside the target, then one rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tvm import tirx

from ..models import Checkpoint
from ..models.config import ModelConfig
from ..models.graph import attention_shape
from ..models.kernels import KV_CACHES
from ..models.lora import adapter_layout
from ..models.packing import DENSE
from ..targets import FabricError, Target, host_triple
from ..targets.manifest import MANIFEST, SCHEMA, digest, sha256
from .options import CompileOptions

Progress = Callable[[str, float], None]
"""Told the phase and the fraction done."""


def manifest_of(
    model: Checkpoint,
    target: Target,
    options: CompileOptions,
    weights: list[dict[str, Any]],
    kernels: dict[str, str],
    memory: dict[str, int],
    plan: dict[str, Any],
) -> dict[str, Any]:
    """Return the manifest without its file hashes."""
    lora = options.lora
    return {
        "schema": SCHEMA,
        "tools": {name: version(name) for name in ("bitfabric", "apache-tvm", "apache-tvm-ffi")},
        "model": {"name": model.name, "config": model.config.to_dict()},
        "target": {
            "name": target.name,
            "device": target.device,
            "options": target.options,
            "features": sorted(target.features),
            "host": host_triple(target),
            "limits": asdict(target.limits) if target.limits else None,
        },
        "training": {"context": options.context, "micro_batch": options.micro_batch},
        "lora": {
            "rank": lora.rank,
            "alpha": lora.alpha,
            "scale": lora.scale,
            "modules": list(lora.modules),
            "dropout": lora.dropout,
            "rslora": lora.rslora,
        },
        "adapter": asdict(adapter_layout(model.config, lora)),
        "head": options.head,
        "packing": DENSE if model.config.dense else options.packing,
        "moments": options.moments,
        "cache": cache_layout(model.config, options.kv_cache),
        "weights": weights,
        "kernels": kernels,
        "memory": memory,
        "plan": plan,
    }


def cache_layout(config: ModelConfig, kv_cache: str) -> dict[str, Any]:
    """Return the format of the cache and a layer's tensors of it.

    An extent is a number, or ``"S"``, the sequences, or ``"M"``, the positions.
    """
    sequences, positions = (tirx.Var(name, "int64") for name in "SM")
    fields = KV_CACHES[kv_cache].fields(attention_shape(config), sequences, positions)

    def extent(value: Any) -> int | str:
        return value.name if isinstance(value, tirx.Var) else int(value)

    tensors = [
        {"name": name, "shape": [extent(e) for e in kind.shape], "dtype": str(kind.dtype)}
        for name, kind in fields.items()
    ]
    return {"format": kv_cache, "tensors": tensors}


@contextmanager
def bundle_folder(output: Path):  # type: ignore[no-untyped-def]
    """Give a temporary folder that becomes `output` when the block ends well.

    Raises
    ------
    FabricError
        If `output` exists and is no bundle, or its disk is full.
    """
    if output.exists() and not (output / MANIFEST).is_file():
        raise FabricError(
            f"{output} exists and is not a bundle.", "Name another output, or remove it first."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        (work / "weights").mkdir()
        yield work
        _replace(work, output)
    except OSError as error:
        raise FabricError(
            f"The bundle {output} could not be written: {error.strerror or error}.",
            "Make room on the disk or name another output; nothing was left behind.",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(work: Path, output: Path) -> None:
    """Put `work` in the place of `output`; an old bundle goes only once the new one stands."""
    os.chmod(work, 0o755)
    if not output.exists():
        work.rename(output)
        return
    old = work.with_name(work.name + ".old")
    output.rename(old)
    try:
        work.rename(output)
    except OSError:
        with suppress(OSError):
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Hash every file of the folder into the manifest and write it, on disk before it is named."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256(path),
            "bytes": path.stat().st_size,
        }
        for path in files
    }
    manifest["digest"] = digest(manifest)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
