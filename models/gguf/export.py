"""From any checkpoint to a GGUF file that programs of the llama.cpp family read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint, TernaryWeight
from ..config import MODULES, ModelConfig
from .blocks import pack_tq1_0, pack_tq2_0
from .checkpoint import SCALES_KEY
from .config import write_config
from .header import GGUFError
from .names import (
    ARCHITECTURES,
    EMBEDDING,
    HEAD,
    Architecture,
    heads_of,
    module_tensor,
    norm_tensor,
    permute,
)
from .tokenizer_metadata import tokenizer_metadata
from .writer import Block, write_gguf

TYPES = {"TQ2_0": 37, "TQ1_0": 36, "F16": 1}
"""The types of a ternary matrix that are written, with their ``general.file_type``."""

_ROW_MULTIPLE = 256
_ROWS_AT_ONCE = 4096


def export_gguf(
    model: Checkpoint,
    path: Path,
    kind: str = "TQ2_0",
    architecture: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, int]:
    """Write a model as GGUF, one tensor in memory at a time.

    Matrices whose rows are no multiple of 256 long become F16, as the common converter has it, and
    so do the tables; norms are F32. A block's scale is float16 in the format; the float32 scales
    stand in the metadata too, under a key that only fabric reads.

    Parameters
    ----------
    model : Checkpoint
        The model.
    path : pathlib.Path
        The file to make or replace.
    kind : {"TQ2_0", "TQ1_0", "F16"}
        How ternary matrices are stored.
    architecture : str, optional
        ``general.architecture``; by default what llama.cpp calls such a model.
    progress : callable, optional
        Called with the fraction that is written.

    Returns
    -------
    dict of str to int
        How many tensors have each type.

    Raises
    ------
    GGUFError
        Where no architecture of GGUF computes such a model, its tokenizer cannot be written, a
        scale is beyond float16, or the file cannot be written.
    CheckpointError
        Where a tensor of the model is unusable.
    """
    if kind not in TYPES:
        raise GGUFError(f"There is no type {kind!r} to export as.", f"Use {', '.join(TYPES)}.")
    chosen = choose_architecture(model.config, architecture)
    blocks = list(_blocks(model, chosen, kind))
    metadata = {
        "general.architecture": chosen.name,
        "general.type": "model",
        "general.name": model.name,
        "general.file_type": TYPES[kind],
        "general.quantization_version": 2,
        **write_config(model.config, chosen),
        **tokenizer_metadata(model.tokenizer_files, model.config),
        SCALES_KEY: _scales(model),
    }
    write_gguf(path, metadata, blocks, progress)
    counts: dict[str, int] = {}
    for block in blocks:
        counts[block.type] = counts.get(block.type, 0) + 1
    return counts


def choose_architecture(config: ModelConfig, name: str | None = None) -> Architecture:
    """Find the architecture of GGUF that computes a model, or check the one that is asked for.

    Raises
    ------
    GGUFError
        Where there is none, or the one asked for computes something else.
    """
    if config.attention_sub_norm != config.ffn_sub_norm:
        raise _no_architecture("it has one of the two norms before the output projections")
    name = name or ("bitnet" if config.attention_sub_norm else "llama")
    if name not in ARCHITECTURES:
        raise GGUFError(
            f"There is no architecture {name!r} to export as.", f"Use {', '.join(ARCHITECTURES)}."
        )
    chosen = ARCHITECTURES[name]
    if chosen.sub_norms != config.attention_sub_norm:
        raise _no_architecture(f"{name} has other norms")
    if chosen.fixed_activation and chosen.activation != config.activation:
        raise _no_architecture(f"{name} computes {chosen.activation}, not {config.activation}")
    if not (config.tied_head or chosen.separate_head):
        raise _no_architecture(f"programs use the embedding as the head of every {name}")
    if chosen.sub_norms and config.attention_size != config.hidden_size:
        raise _no_architecture(f"the heads of a {name} are together as wide as its hidden state")
    return chosen


def _blocks(model: Checkpoint, architecture: Architecture, kind: str) -> Iterator[Block]:
    """Yield every tensor in the order of the model."""
    config = model.config
    yield _table(EMBEDDING, model.embedding, config)
    if not config.tied_head:
        yield _table(HEAD, model.head, config)
    for name, size in config.norm_shapes().items():

        def norm(name: str = name) -> list[np.ndarray]:
            return [model.norm(name)]

        yield Block(norm_tensor(name), "F32", (size,), norm)
    for layer in range(config.num_layers):
        for module in MODULES:
            shape = config.module_shape(module)
            stored = kind if shape[1] % _ROW_MULTIPLE == 0 else "F16"

            def chunks(
                layer: int = layer, module: str = module, stored: str = stored
            ) -> list[np.ndarray]:
                weight = model.ternary(layer, module)
                codes, heads = weight.codes, heads_of(config, module)
                if architecture.permuted and heads:
                    codes = permute(codes, heads)
                return [_stored(TernaryWeight(codes, weight.scale), stored)]

            yield Block(module_tensor(layer, module), stored, shape, chunks)


def _table(name: str, read: Callable[[slice], Any], config: ModelConfig) -> Block:
    shape = (config.vocab_size, config.hidden_size)

    def chunks() -> Iterator[np.ndarray]:
        for begin in range(0, shape[0], _ROWS_AT_ONCE):
            rows = np.asarray(read(slice(begin, begin + _ROWS_AT_ONCE)))
            with np.errstate(over="ignore"):
                half = rows.astype(np.float16)
            if not np.isfinite(half).all():
                raise GGUFError(
                    f"Tensor {name} holds numbers beyond float16's range.",
                    "Scale the model's tables, or keep it in its own format.",
                )
            yield half

    return Block(name, "F16", shape, chunks)


def _stored(weight: TernaryWeight, kind: str) -> np.ndarray:
    """Give a matrix as it is stored."""
    # By way of float32, so that it is what the float32 scale in the metadata rounds to.
    scale = np.float16(np.float32(weight.scale))
    if kind == "F16":
        return weight.codes.astype(np.float16) * scale
    pack = pack_tq2_0 if kind == "TQ2_0" else pack_tq1_0
    return pack(weight.codes.reshape(-1), float(scale))


def _scales(model: Checkpoint) -> np.ndarray:
    """Give all float32 scales, layer by layer, and refuse those that float16 cannot hold."""
    scales = []
    for layer in range(model.config.num_layers):
        for module in MODULES:
            scale = model.ternary(layer, module).scale
            with np.errstate(over="ignore"):
                half = np.float16(scale)
            if not np.isfinite(half) or abs(float(half) - scale) > 1e-3 * scale:
                raise GGUFError(
                    f"The scale {scale} of {module} in layer {layer} is beyond float16.",
                    "GGUF keeps the scale of a block as float16; no other form is written.",
                )
            scales.append(scale)
    return np.array(scales, np.float32)


def _no_architecture(why: str) -> GGUFError:
    return GGUFError(
        f"GGUF has no architecture for this model: {why}.",
        "Choose another one with --architecture, or keep the model in its own format.",
    )
