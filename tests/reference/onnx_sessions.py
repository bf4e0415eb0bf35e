"""Running ONNX decoders in onnxruntime, with their key-value cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class OnnxDecoder:
    """A decoder in an ONNX file; keeps the cache between calls.

    Parameters
    ----------
    path : pathlib.Path
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._cache_shapes = {
            value.name: value.shape
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        self.cache: dict[str, np.ndarray] = {}

    def __call__(self, tokens: Any, mask: Any = None, positions: Any = None) -> np.ndarray:
        """Give logits [B, T, V] of tokens [B, T], after those in the cache."""
        tokens = np.asarray(tokens, np.int64)
        batch, length = tokens.shape
        if not self.cache:
            self.cache = {
                name: np.zeros((batch, shape[1], 0, shape[3]), np.float32)
                for name, shape in self._cache_shapes.items()
            }
        past = next(iter(self.cache.values())).shape[2]
        places = np.broadcast_to(np.arange(past, past + length), tokens.shape)
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones((batch, past + length), np.int64) if mask is None else mask,
            "position_ids": places if positions is None else positions,
            **self.cache,
        }
        names = [value.name for value in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feeds), strict=True))
        logits = outputs.pop("logits")
        self.cache = {
            name.replace("present.", "past_key_values."): value for name, value in outputs.items()
        }
        return logits
