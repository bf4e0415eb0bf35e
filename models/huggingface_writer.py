"""Writing a model as a Hugging Face folder: packed ternary, or in floating point."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..targets import FabricError
from .checkpoint import Checkpoint
from .config import MODULES, ModelConfig
from .families import EMBEDDING, FAMILIES, HEAD, MERGED_KEY, Family
from .huggingface import HuggingFaceCheckpoint
from .merge import MergedTernary
from .safetensors_files import SINGLE_FILE, widen
from .ternary import CODES_PER_BYTE, pack
from .tokenizer_files import SPECIAL_TOKENS, TOKENIZER
from .whole_folder import whole_folder

_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
_ROWS = 4096
_COPIED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
Progress = Callable[[str, float], None]
Array = npt.NDArray[Any]


def storage(model: Checkpoint) -> str:
    """Give the smallest of F16, BF16 and F32 that holds all but the matrices exactly."""
    fits = {"F16", "BF16"}
    for values in _rest(model):
        fits = {dtype for dtype in fits if np.array_equal(_widened(_stored(values, dtype), dtype),
                                                          values)}  # fmt: skip
        if not fits:
            return "F32"
    return "F16" if "F16" in fits else "BF16"


def storable_scale(dtype: str) -> Callable[[float], float]:
    """Give the function that rounds a scale to what a file of a dtype holds."""

    def rounded(scale: float) -> float:
        return float(_widened(_stored(np.array([scale], np.float32), dtype), dtype)[0])

    return rounded


def write_ternary(
    model: Checkpoint, output: Path, dtype: str, progress: Progress | None = None
) -> Path:
    """Write a folder with packed codes and their scales, the rest in one floating-point type.

    Parameters
    ----------
    model : Checkpoint
        Scales must be such as `dtype` holds (`storable_scale`).
    output : Path
        A folder that does not exist yet.
    dtype : str
        ``F16``, ``BF16`` or ``F32``; transformers computes in it.
    progress : callable or None
        Told the phase and the share done.

    Raises
    ------
    FabricError
        Where the folder exists or cannot be written, or a matrix cannot be packed.
    """

    def matrices(layer: int, module: str) -> Iterator[Array]:
        weight = model.ternary(layer, module)
        yield pack(weight.codes)
        yield np.array([weight.scale], np.float32)

    quantization = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    }
    rows = [model.config.module_shape(module)[0] for module in MODULES]
    if odd := [count for count in rows if count % CODES_PER_BYTE]:
        raise FabricError(
            f"A matrix of {odd[0]} rows cannot be packed four to a byte.",
            "Merge into floating point with --to f16.",
        )
    extra = {"quantization_config": quantization}
    return _write(model, output, dtype, matrices, extra, packed=True, progress=progress)


def write_plain(
    model: Checkpoint,
    matrix_of: Callable[[int, str], npt.NDArray[np.float32]],
    output: Path,
    dtype: str,
    progress: Progress | None = None,
) -> Path:
    """Write a folder whose linear layers are ordinary matrices in floating point.

    Parameters
    ----------
    model : Checkpoint
        Gives all but the linear layers.
    matrix_of : callable
        Gives the float32 [N, K] of a linear layer by layer and module.
    output, dtype, progress
        As in `write_ternary`.

    Raises
    ------
    FabricError
        Where the folder exists or cannot be written, or a value is beyond the type's range.
    """

    def matrices(layer: int, module: str) -> Iterator[Array]:
        yield matrix_of(layer, module)

    extra = {MERGED_KEY: True}
    return _write(model, output, dtype, matrices, extra, packed=False, progress=progress)


def _write(
    model: Checkpoint,
    output: Path,
    dtype: str,
    matrices: Callable[[int, str], Iterator[Array]],
    extra: dict[str, Any],
    *,
    packed: bool,
    progress: Progress | None,
) -> Path:
    family = _family(model.config)
    with whole_folder(output) as work:
        values = {**_config_json(model.config, family, _TORCH[dtype]), **extra}
        (work / "config.json").write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        _write_tokenizer(model, work)
        specs = _specs(model.config, family, dtype, packed)
        _write_weights(work / SINGLE_FILE, specs, _arrays(model, matrices), model, progress)
    return output


def _specs(
    config: ModelConfig, family: Family, dtype: str, packed: bool
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Give name, dtype and shape of every tensor, in the order of `_arrays`."""
    specs: list[tuple[str, str, tuple[int, ...]]] = []
    for layer in range(config.num_layers):
        for module in MODULES:
            name, (rows, columns) = family.module_tensor(layer, module), config.module_shape(module)
            if packed:
                specs.append((name, "U8", (rows // CODES_PER_BYTE, columns)))
                specs.append((f"{name}_scale", dtype, (1,)))
            else:
                specs.append((name, dtype, (rows, columns)))
    for norm, size in config.norm_shapes().items():
        specs.append((family.norm_tensor(norm), dtype, (size,)))
    table = (config.vocab_size, config.hidden_size)
    specs += [(name, dtype, table) for name in (EMBEDDING, *([] if config.tied_head else [HEAD]))]
    return specs


def _arrays(
    model: Checkpoint, matrices: Callable[[int, str], Iterator[Array]]
) -> Iterator[tuple[Array, float]]:
    """Give the pieces of all tensors, in order, each with the share of layers done."""
    layers = model.config.num_layers
    for layer in range(layers):
        for module in MODULES:
            for array in matrices(layer, module):
                yield array, (layer + 1) / layers
    for array in _rest(model):
        yield array, 1.0


def _rest(model: Checkpoint) -> Iterator[Array]:
    """Give norms, embedding and head as float32, the tables in pieces."""
    for norm in model.config.norm_shapes():
        yield model.norm(norm)
    for table in (model.embedding, *([] if model.config.tied_head else [model.head])):
        for begin in range(0, model.config.vocab_size, _ROWS):
            rows = table(slice(begin, min(begin + _ROWS, model.config.vocab_size)))
            yield rows.astype(np.float32)


def _write_weights(
    path: Path,
    specs: list[tuple[str, str, tuple[int, ...]]],
    arrays: Iterator[tuple[Array, float]],
    model: Checkpoint,
    progress: Progress | None,
) -> None:
    """Write a safetensors file whose tensors come one piece after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in specs:
        size = int(np.prod(shape)) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dtype, shape in specs:
            missing = int(np.prod(shape))
            while missing:
                array, share = next(arrays)
                stored = array if dtype == "U8" else _stored(array, dtype)
                if dtype == "F16" and not np.isfinite(stored).all():
                    raise FabricError(
                        f"{name} of {model.name} holds values beyond the range of float16.",
                        "Merge with --to f32.",
                    )
                file.write(np.ascontiguousarray(stored).data)
                missing -= array.size
                if progress is not None:
                    progress("writing", share)


def _stored(values: Array, dtype: str) -> Array:
    """Round float32 to a dtype of the format, bfloat16 as its bits; ties to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype("<f2" if dtype == "F16" else "<f4")


def _widened(stored: Array, dtype: str) -> Array:
    return widen(stored) if dtype == "BF16" else stored.astype(np.float32)


def _family(config: ModelConfig) -> Family:
    """Give the family as which transformers can load a model; it has two kinds."""
    wanted = {(True, True): "bitnet", (False, False): "llama"}
    name = wanted.get((config.attention_sub_norm, config.ffn_sub_norm))
    found = next((family for family in FAMILIES if family.name == name), None)
    if found is None or (name == "llama" and config.activation != "silu"):
        raise FabricError(
            "No class of transformers computes a model with these norms and this activation.",
            "Merge into another model.",
        )
    return found


def _config_json(config: ModelConfig, family: Family, dtype: str) -> dict[str, Any]:
    ends = list(config.eos_token_ids)
    values = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "max_position_embeddings": config.max_context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tied_head,
        "attention_bias": False,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": (ends if len(ends) > 1 else ends[0]) if ends else None,
        "torch_dtype": dtype,
    }
    return values


def _write_tokenizer(model: Checkpoint, folder: Path) -> None:
    """Write the tokenizer, with the settings that the model came with or the least that serve."""
    for name, content in model.tokenizer_files.items():
        if name != SPECIAL_TOKENS:
            (folder / name).write_bytes(content)
    origin = model.base if isinstance(model, MergedTernary) else model
    source = origin.folder if isinstance(origin, HuggingFaceCheckpoint) else None
    for name in _COPIED:
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings = folder / "tokenizer_config.json"
    if TOKENIZER in model.tokenizer_files and not settings.exists():
        tokens = json.loads(model.tokenizer_files.get(SPECIAL_TOKENS, b"{}"))
        named = {key: token for key, token in tokens.items() if token is not None}
        values = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
        settings.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
