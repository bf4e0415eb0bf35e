"""What every source of weights gives, one matrix at a time: ternary codes and scales, or floats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..targets import FabricError
from .config import ModelConfig

ALL_ROWS = slice(None)


class CheckpointError(FabricError):
    """A model's files are missing, damaged, or of a kind that fabric does not read."""


@dataclass(frozen=True)
class TernaryWeight:
    """One BitLinear's matrix, ``y = scale * (codes @ x)``.

    Parameters
    ----------
    codes : numpy.ndarray
        int8 [N, K], each -1, 0 or 1.
    scale : float
        The one factor of the whole matrix, greater than zero.
    """

    codes: npt.NDArray[np.int8]
    scale: float


class Checkpoint(ABC):
    """A model's weights, read when asked for, so that the whole model is never in memory.

    Parameters
    ----------
    name : str
        What the person called it.
    config : ModelConfig
        Its architecture.
    tokenizer_files : mapping of str to bytes
        ``tokenizer.json`` (of the `tokenizers` library), ``chat_template.jinja`` and
        ``special_tokens.json`` (``{"bos_token": ..., "eos_token": ...}``, the strings that chat
        templates write), as far as the model has them.

    Attributes
    ----------
    notes : tuple of str
        What a person should know who compiles it: sentences, usually none.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self, name: str, config: ModelConfig, tokenizer_files: Mapping[str, bytes] | None = None
    ) -> None:
        self.name = name
        self.config = config
        self.tokenizer_files = dict(tokenizer_files or {})

    def ternary(self, layer: int, module: str) -> TernaryWeight:
        """Give one matrix of one layer; `module` is one of `MODULES`.

        Raises
        ------
        CheckpointError
            Where the model is dense: it has no ternary matrices.
        """
        raise CheckpointError(
            f"The linear layers of {self.name} are not ternary.",
            "Use a BitNet model for this; dense ones can be compiled, trained and run.",
        )

    def dense(self, layer: int, module: str) -> npt.NDArray[np.floating]:
        """Give one matrix of one layer of a dense model, float16 or float32 [N, K]."""
        raise CheckpointError(
            f"The linear layers of {self.name} are ternary.", "Read them as such."
        )

    @abstractmethod
    def norm(self, name: str) -> npt.NDArray[np.float32]:
        """Give one RMSNorm's weight, float32 [n], by its name in `ModelConfig.norm_shapes`."""

    @abstractmethod
    def embedding(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give token vectors, float16 or float32 [len(rows), hidden_size], all by default."""

    def head(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give the output head's rows, as `embedding` does; the embedding where it is tied."""
        return self.embedding(rows)
