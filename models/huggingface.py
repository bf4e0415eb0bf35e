"""Checkpoints in Hugging Face folders: masters, packed or dense, a tensor in memory at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .checkpoint import ALL_ROWS, Checkpoint, CheckpointError, TernaryWeight
from .families import EMBEDDING, HEAD, find_family
from .huggingface_config import model_config
from .safetensors_files import TensorFiles, not_finite, read_json
from .ternary import CODES_PER_BYTE, is_ternary, quantize_master, unpack
from .tokenizer_files import read_tokenizer_files

_ANOTHER = "Download the model again, or use another revision of it."


class HuggingFaceCheckpoint(Checkpoint):
    """A folder with config.json and safetensors files.

    A BitLinear's weight is read by how it is stored: uint8 is packed codes; floating point beside a
    ``weight_scale`` is codes; floating point alone is a master, quantised as in the forward pass.
    Opening checks every tensor's name and shape; reading a tensor checks its values.

    Parameters
    ----------
    folder : pathlib.Path
        The model's folder.
    name : str, optional
        What to call it; the folder's name by default.

    Raises
    ------
    CheckpointError
        Where a file is missing or damaged, the family is unknown, a feature is unsupported, or the
        tensors are not those of the family.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        values = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        self.folder = folder
        self.family = find_family(values)
        self._quantization = values.get("quantization_config") or {}
        config = model_config(
            self.family, values, read_json(generation) if generation.is_file() else {}
        )
        super().__init__(name or folder.resolve().name, config, read_tokenizer_files(folder))
        self._files = TensorFiles(folder)
        self._check_names()
        self._check_shapes()

    def ternary(self, layer: int, module: str) -> TernaryWeight:
        """Give one matrix; see `Checkpoint.ternary`.

        Raises
        ------
        CheckpointError
            Where the matrix is all zero, not ternary though it is declared so, or not finite.
        """
        if self.config.dense:
            return super().ternary(layer, module)
        name = self.family.module_tensor(layer, module)
        if self._files.entries[name].dtype == "U8":
            codes = unpack(np.asarray(self._files.map(name)))
            weight = TernaryWeight(codes, self._scale(name))
        elif _scale_tensor(name) in self._files.entries:
            values = self._files.floats(name)
            # Cast only what is known to survive it: is_ternary below sees the values themselves.
            codes = values.astype(np.int8) if is_ternary(values) else np.full_like(values, 2, "i1")
            weight = TernaryWeight(codes, self._scale(name))
        else:
            weight = quantize_master(self._files.floats(name))
        if not is_ternary(weight.codes):
            raise CheckpointError(
                f"Tensor {name} is declared ternary but holds other values than -1, 0 and 1.",
                _ANOTHER,
            )
        if not weight.codes.any():
            raise CheckpointError(f"Tensor {name} is zero throughout.", _ANOTHER)
        return weight

    def dense(self, layer: int, module: str) -> npt.NDArray[np.floating]:
        """Give one matrix; see `Checkpoint.dense`."""
        if not self.config.dense:
            return super().dense(layer, module)
        return self._files.floats(self.family.module_tensor(layer, module))

    def norm(self, name: str) -> npt.NDArray[np.float32]:
        """Give one norm; see `Checkpoint.norm`."""
        weight = self._files.floats(self.family.norm_tensor(name)).astype(np.float32, copy=False)
        return weight + np.float32(self.family.norm_offset) if self.family.norm_offset else weight

    def embedding(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give token vectors; see `Checkpoint.embedding`."""
        return self._files.floats(EMBEDDING, rows)

    def head(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give the output head's rows; see `Checkpoint.head`."""
        return self._files.floats(EMBEDDING if self.config.tied_head else HEAD, rows)

    def _scale(self, name: str) -> float:
        """Read the factor of a ternary tensor, in the convention of its linear class."""
        tensor = _scale_tensor(name)
        scales = self._files.floats(tensor)
        if scales.size != 1:
            raise CheckpointError(
                f"Tensor {tensor} holds {scales.size} scales; a ternary matrix has one.", _ANOTHER
            )
        scale = float(scales.reshape(()))
        if scale <= 0:
            raise CheckpointError(f"Tensor {tensor} is {scale}, not a positive scale.", _ANOTHER)
        # transformers' older class divides by the stored number, and is what a silent config means.
        if self._quantization.get("linear_class", "bitlinear") == "bitlinear":
            scale = 1 / scale
        if not math.isfinite(scale):
            raise not_finite(tensor)
        return scale

    def _check_names(self) -> None:
        """Refuse tensors that are missing, and those whose part in the model is unknown."""
        expected = self.family.tensor_shapes(self.config)
        entries = self._files.entries
        matrices = [name for name, shape in expected.items() if _is_layer(name) and len(shape) == 2]
        required = set(expected)
        offline = self._quantization.get("quantization_mode", "offline") == "offline"
        if self._quantization and offline:
            required |= {_scale_tensor(name) for name in matrices}
        if missing := sorted(required.difference(entries)):
            raise CheckpointError(
                f"The checkpoint lacks tensors: {_listed(missing)}.",
                "Download the model again, and all of its shards.",
            )
        known = required.union(_scale_tensor(name) for name in matrices)
        if unknown := sorted(
            name
            for name in entries
            if name not in known and _is_layer(name) and not name.endswith("inv_freq")
        ):
            raise CheckpointError(
                f"config.json describes a model without these tensors: {_listed(unknown)}.",
                "Check that config.json belongs to these weights.",
            )

    def _check_shapes(self) -> None:
        """Refuse tensors whose shape or dtype is not the one that config.json asks for."""
        for name, shape in self.family.tensor_shapes(self.config).items():
            entry = self._files.entries[name]
            stored = entry.shape
            if entry.dtype == "U8" and _is_layer(name) and len(shape) == 2:
                if not self._quantization or self.config.dense:
                    raise CheckpointError(
                        f"Tensor {name} is packed, but config.json has no quantization_config.",
                        "Without it the scale's meaning is unknown; use the model's own "
                        "config.json.",
                    )
                stored = (stored[0] * CODES_PER_BYTE, *stored[1:])
            elif entry.dtype not in ("F32", "F16", "BF16"):
                raise CheckpointError(
                    f"Tensor {name} is stored as {entry.dtype}, which fabric does not read.",
                    "Use a checkpoint in float32, float16 or bfloat16, or packed as uint8.",
                )
            if stored != shape:
                raise CheckpointError(
                    f"Tensor {name} has the shape {list(stored)}, not {list(shape)}.",
                    "Check that config.json belongs to these weights.",
                )


def _is_layer(name: str) -> bool:
    return name.startswith("model.layers.")


def _scale_tensor(name: str) -> str:
    return f"{name}_scale"


def _listed(names: list[str], most: int = 3) -> str:
    """Name the first few of many tensors."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
