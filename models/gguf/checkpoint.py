"""BitNet models in GGUF files: ternary, packed or as masters, one tensor in memory at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..checkpoint import ALL_ROWS, Checkpoint, TernaryWeight
from ..config import MODULES
from ..ternary import is_ternary, quantize_master
from .blocks import LAYOUTS, unpack_i2_s, unpack_tq1_0, unpack_tq2_0
from .config import read_architecture, read_config
from .floats import FLOAT_TYPES, not_finite, read_rows
from .header import GGUFError, GGUFFile, TensorEntry, open_gguf
from .names import (
    EMBEDDING,
    HEAD,
    ROPE_FACTORS,
    heads_of,
    module_tensor,
    norm_tensor,
    scale_tensor,
    tensor_shapes,
    unpermute,
)
from .tokenizer import read_tokenizer

SCALES_KEY = "bitfabric.ternary_scales"
"""The float32 scales of all matrices, layer by layer; a block of the file rounds to float16."""

_TERNARY_TYPES = ("TQ1_0", "TQ2_0", "I2_S")
_ANOTHER = "Download or convert the file again, or use another one."


class GGUFCheckpoint(Checkpoint):
    """A .gguf file of the architecture bitnet (or one of its variants) or llama.

    A matrix of TQ1_0, TQ2_0 or I2_S is ternary as it stands. One of F32, F16 or BF16 is ternary if
    all its weights that are not zero have one magnitude, the scale; otherwise it is a master and
    quantised as in the forward pass, except in a llama, where nothing says that it is a BitNet.
    Opening checks every tensor's name and shape; reading a tensor checks its values.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    i2s_layout : {"auto", "x86", "arm"}
        How I2_S tensors lie, which depends on the machine that wrote them.

    Raises
    ------
    GGUFError
        Where the file is damaged or its model unsupported, or I2_S tensors could be either layout.
    """

    def __init__(self, path: Path, i2s_layout: str = "auto") -> None:
        self._file: GGUFFile = open_gguf(path)
        self.architecture = read_architecture(self._file)
        config = read_config(self._file, self.architecture)
        super().__init__(path.stem, config, read_tokenizer(self._file, config.vocab_size))
        self._check_names()
        self._check_rope_factors()
        self._group = _i2_s_group(self._file, i2s_layout)
        self._exact = self._exact_scales()

    def ternary(self, layer: int, module: str) -> TernaryWeight:
        """Give one matrix; see `Checkpoint.ternary`.

        Raises
        ------
        GGUFError
            Where the matrix is all zero, not ternary, has several scales, or is not finite.
        """
        entry = self._file.tensors[module_tensor(layer, module)]
        codes, scale = self._read(entry)
        exact = self._exact.get((layer, module))
        # Only what rounds to the scale in the file is the scale that was rounded.
        if exact is not None and scale in (exact, float(np.float16(exact))):
            scale = exact
        scale *= self._factor(layer, module)
        if not is_ternary(codes):
            raise GGUFError(
                f"Tensor {entry.name} is declared ternary but holds other values than -1, 0 and 1.",
                _ANOTHER,
            )
        if not codes.any():
            raise GGUFError(f"Tensor {entry.name} is zero throughout.", _ANOTHER)
        if not (math.isfinite(scale) and scale > 0):
            raise GGUFError(f"Tensor {entry.name} has the scale {scale}.", _ANOTHER)
        heads = heads_of(self.config, module)
        if self.architecture.permuted and heads:
            codes = unpermute(codes, heads)
        return TernaryWeight(np.ascontiguousarray(codes), float(scale))

    def norm(self, name: str) -> npt.NDArray[np.float32]:
        """Give one norm; see `Checkpoint.norm`."""
        return self._rows(norm_tensor(name)).astype(np.float32, copy=False)

    def embedding(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give token vectors; see `Checkpoint.embedding`."""
        return self._rows(EMBEDDING, rows)

    def head(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give the output head's rows; see `Checkpoint.head`."""
        return self._rows(EMBEDDING if self.config.tied_head else HEAD, rows)

    def _rows(self, name: str, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        return read_rows(self._file.tensors[name], self._file.bytes_of(name), rows)

    def _read(self, entry: TensorEntry) -> tuple[npt.NDArray[np.int8], float]:
        """Give a matrix's codes [N, K] and the scale in its own tensor."""
        data = self._file.bytes_of(entry.name)
        if entry.type == "I2_S":
            codes = unpack_i2_s(data[: math.prod(entry.shape) // 4], self._group)
            count = data.size - 32
            return codes.reshape(entry.shape), float(data[count : count + 4].view("<f4")[0])
        if entry.type in _TERNARY_TYPES:
            unpack = unpack_tq1_0 if entry.type == "TQ1_0" else unpack_tq2_0
            codes, scales = unpack(data)
            return codes.reshape(entry.shape), _common_scale(entry.name, codes, scales)
        values = read_rows(entry, data)
        weight = _single_magnitude(values)
        if weight is None and self.architecture.permuted:
            raise GGUFError(
                f"Tensor {entry.name} is not ternary, and nothing in the file says that this "
                f"{self.architecture.name} is a BitNet.",
                "Use a ternary file of the model, or its Hugging Face folder.",
            )
        weight = weight or quantize_master(values)
        return weight.codes, weight.scale

    def _factor(self, layer: int, module: str) -> float:
        """Give what multiplies the matrix's output besides the scale in its own tensor."""
        name = scale_tensor(layer, module)
        if name not in self._file.tensors:
            return 1.0
        return float(self._rows(name).reshape(-1)[0])

    def _exact_scales(self) -> dict[tuple[int, str], float]:
        scales = self._file.metadata.get(SCALES_KEY)
        pairs = [(layer, module) for layer in range(self.config.num_layers) for module in MODULES]
        if not isinstance(scales, np.ndarray) or len(scales) != len(pairs):
            return {}
        return dict(zip(pairs, map(float, scales), strict=True))

    def _check_names(self) -> None:
        """Refuse tensors that are missing, unknown inside a layer, or not shaped as they must."""
        expected = tensor_shapes(self.config)
        tensors = self._file.tensors
        if missing := sorted(set(expected).difference(tensors)):
            raise GGUFError(
                f"{self._file.path} lacks {len(missing)} tensors, such as {missing[0]}.",
                "Download or convert the file again.",
            )
        matrices = {
            module_tensor(layer, module)
            for layer in range(self.config.num_layers)
            for module in MODULES
        }
        scales = {name.removesuffix("weight") + "scale": (1,) for name in matrices}
        for name, entry in tensors.items():
            shape = expected.get(name) or scales.get(name)
            if shape is None:
                # rope_freqs is looked at by itself; a name that no program knows changes nothing.
                if name.startswith("blk.") or name == "output.bias":
                    raise GGUFError(
                        f"Tensor {name} is no part of a BitNet that fabric computes.",
                        "Use a model without it; see `fabric models`.",
                    )
                continue
            if entry.shape != shape:
                raise GGUFError(
                    f"Tensor {name} has the shape {list(entry.shape)}, not {list(shape)}.",
                    _ANOTHER,
                )
            allowed = (*_TERNARY_TYPES, "F32", "F16", "BF16") if name in matrices else FLOAT_TYPES
            if entry.type not in allowed:
                raise GGUFError(
                    f"Tensor {name} is stored as {entry.type}, but must be one of "
                    f"{', '.join(allowed)}.",
                    _ANOTHER,
                )

    def _check_rope_factors(self) -> None:
        """Refuse scaled rotary frequencies; only the llama architecture has programs use them."""
        used = self.architecture.permuted and ROPE_FACTORS in self._file.tensors
        if used and not (self._rows(ROPE_FACTORS) == 1).all():
            raise GGUFError(
                f"Tensor {ROPE_FACTORS} scales the rotary positions, which fabric does not "
                "compute.",
                "Use a model without rotary scaling.",
            )


def _i2_s_group(file: GGUFFile, layout: str) -> int:
    """Decide how I2_S tensors lie.

    x86 packs 128 codes at a time and ARM 64, so a tensor of an odd number of 64s is ARM's; nothing
    else in a file tells, since either way every byte holds four valid codes.
    """
    if layout not in ("auto", *LAYOUTS):
        raise GGUFError(
            f"There is no I2_S layout {layout!r}.", f"Use auto, {' or '.join(LAYOUTS)}."
        )
    counts = {
        name: math.prod(entry.shape) for name, entry in file.tensors.items() if entry.type == "I2_S"
    }
    if layout == "auto" and counts:
        if not any(count % 128 for count in counts.values()):
            raise GGUFError(
                f"{file.path} has I2_S tensors, whose layout depends on the machine that wrote "
                "them, and nothing in the file tells which it was.",
                "Say it with --i2s-layout x86 or --i2s-layout arm.",
            )
        layout = "arm"
    group = LAYOUTS.get(layout, 0)
    for name, count in counts.items():
        if count % (4 * group):
            raise GGUFError(
                f"Tensor {name} of {count} codes cannot be I2_S in the {layout} layout.",
                "Try the other --i2s-layout, or convert the model to TQ2_0.",
            )
    return group


def _common_scale(name: str, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16]) -> float:
    """Give the scale on which all blocks [blocks, 256] of a tensor agree.

    A block without any weight may have any finite scale: quantisers write 0 there.
    """
    if not np.isfinite(scales).all():
        raise not_finite(name)
    used = np.unique(scales[codes.any(axis=1)])
    if len(used) > 1:
        raise GGUFError(
            f"The blocks of tensor {name} have {len(used)} different scales; a BitNet's matrix has "
            "one.",
            "The model was not a BitNet when it was quantised: convert it from its Hugging Face "
            "folder.",
        )
    return float(used[0]) if len(used) else 1.0


def _single_magnitude(values: npt.NDArray[np.floating]) -> TernaryWeight | None:
    """Read a matrix whose weights are -s, 0 and s; None where there are other values."""
    magnitude = float(max(values.max(), -values.min()))
    for begin in range(0, len(values), 256):
        block = np.abs(values[begin : begin + 256])
        if not ((block == 0) | (block == magnitude)).all():
            return None
    return TernaryWeight(np.sign(values).astype(np.int8), magnitude)
