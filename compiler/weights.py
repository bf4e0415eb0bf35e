"""From a checkpoint's tensors to the weight files of a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..models import Checkpoint
from ..models.graph import Formats, HeadFormat, TensorSpec, head_tensors, layer_span, layer_tensors
from ..models.lora import linear_groups
from ..models.packing import PACKINGS, pack
from ..targets import FabricError

ALIGNMENT = 64
"""Bytes; a tensor starts at a multiple of it, so that vector loads on the mapped file are legal."""
ROWS_AT_ONCE = 4096
"""Rows of the embedding that are converted at a time."""


def layer_arrays(model: Checkpoint, layer: int, packing: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of one layer by name, one at a time."""
    for group in linear_groups(model.config, ()):
        if model.config.dense:
            parts = [model.dense(layer, module) for module in group.modules]
            name, other = f"{group.name} of layer {layer}", "Use another revision of the model."
            halves = np.concatenate([_half_precision(name, p, other) for p in parts])
            yield group.name, halves.view(np.int32)
            continue
        weights = [model.ternary(layer, module) for module in group.modules]
        codes = np.concatenate([weight.codes for weight in weights])
        yield group.name, pack(codes, PACKINGS[packing])
        yield f"{group.name}_scale", np.array([w.scale for w in weights], np.float32)
    for spec in layer_tensors(model.config, packing):
        if spec.name.endswith("_norm"):
            norm = model.norm(f"layers.{layer}.{spec.name}")
            yield spec.name, np.ascontiguousarray(norm, np.float32)
    if model.config.local_layers:
        yield "span", np.array(layer_span(model.config, layer), np.int32)


def quantise_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise each row of a ``(V, H)`` table to int8 with one float32 scale: max|row| / 127."""
    values = np.empty(table.shape, np.int8)
    scales = np.empty(table.shape[0], np.float32)
    for begin in range(0, table.shape[0], ROWS_AT_ONCE):
        rows = np.asarray(table[begin : begin + ROWS_AT_ONCE], np.float32)
        scale = np.maximum(np.abs(rows).max(axis=1), np.float32(1e-8)) / np.float32(127)
        values[begin : begin + ROWS_AT_ONCE] = np.rint(rows / scale[:, None])
        scales[begin : begin + ROWS_AT_ONCE] = scale
    return values, scales


def _half_precision(
    name: str, table: np.ndarray, remedy: str = "Compile with an int8 head: --head int8"
) -> np.ndarray:
    half = np.asarray(table).astype(np.float16)
    if not np.isfinite(half).all():
        raise FabricError(
            f"The {name} of this model holds values beyond float16's range.",
            remedy,
        )
    return half


def end_arrays(model: Checkpoint, head: HeadFormat) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors outside the layers by name."""
    tables = {"embedding": model.embedding}
    if not model.config.tied_head:
        tables["head"] = model.head
    for name, read in tables.items():
        if head.scaled:
            values, scales = quantise_rows(read())
            yield name, values
            yield f"{name}_scale", scales
        else:
            yield name, _half_precision(name, read())
    yield "final_norm", np.ascontiguousarray(model.norm("final_norm"), np.float32)


def _write(path: Path, specs: list[TensorSpec], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Write the tensors of one file in the order of their specs; return its manifest entry."""
    tensors = []
    with path.open("wb") as file:
        for spec in specs:
            array = arrays.pop(spec.name)
            if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
                raise FabricError(
                    f"The model's {spec.name} is {array.dtype} {array.shape}, "
                    f"not {spec.dtype} {spec.shape} as its configuration says.",
                    "Check the checkpoint's config.json.",
                )
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            tensors.append(
                {
                    "name": spec.name,
                    "dtype": spec.dtype,
                    "shape": list(spec.shape),
                    "offset": file.tell(),
                }
            )
            file.write(np.ascontiguousarray(array).data)
    return {"file": f"weights/{path.name}", "tensors": tensors}


def write_weights(
    model: Checkpoint, formats: Formats, folder: Path, progress: object = None
) -> list[dict[str, Any]]:
    """Write ``ends.bin`` and one file a layer into `folder`.

    Returns
    -------
    list of dict
        For each file its name and, for each tensor, name, dtype, shape and byte offset; the ends
        first, then the layers in order.
    """
    config, head = model.config, formats.head
    entries = [
        _write(folder / "ends.bin", head_tensors(config, head), dict(end_arrays(model, head)))
    ]
    specs = layer_tensors(config, formats.packing)
    for layer in range(config.num_layers):
        path = folder / f"layer_{layer:03d}.bin"
        entries.append(_write(path, specs, dict(layer_arrays(model, layer, formats.packing))))
        if progress is not None:
            progress((layer + 1) / config.num_layers)  # type: ignore[operator]
    return entries
