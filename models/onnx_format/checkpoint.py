"""An ONNX file as a checkpoint: opening recognises the model, reading takes a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint import ALL_ROWS, Checkpoint, CheckpointError, TernaryWeight
from ..config import MODULES, ModelConfig
from ..safetensors_files import read_json
from ..tokenizer_files import read_tokenizer_files
from .graph import OnnxGraph
from .norms import Norm
from .tensors import export_again
from .transformer import Layer, Recognizer, Transformer, tied
from .writer import ADAPTER_KEY, CONFIG_KEY

_FAMILY = "onnx"
_MAX_CONTEXT = 2048
_COMPARED_ROWS = 4096
# What a graph does not tell, taken from our own metadata or from a config.json beside the file.
_UNSEEN = ("family", "max_context", "bos_token_id", "eos_token_ids")


class OnnxCheckpoint(Checkpoint):
    """A decoder in an ONNX file, exported by fabric or by others.

    Parameters
    ----------
    path : pathlib.Path
        The .onnx file; files of weights, ``tokenizer.json`` and its companions, and config.json
        are looked for beside it.
    name : str, optional
        What to call it; the file's name by default.

    Attributes
    ----------
    notes : tuple of str
        Where the graph computes otherwise than BitNet b1.58, which fabric computes.

    Raises
    ------
    CheckpointError
        Where a file is missing or damaged, or at the first node that no BitNet decoder has.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        with self._whole():
            self._open(name)

    def _open(self, name: str | None) -> None:
        path = self._path
        self._graph = OnnxGraph(path)
        if self._graph.properties.get(ADAPTER_KEY, "0") != "0":
            raise CheckpointError(
                f"{path} was exported with an adapter, which stands apart from its weights.",
                "Export the base alone, and give the adapter to fabric as it is.",
            )
        recognizer = Recognizer(self._graph)
        self._model = recognizer.transformer()
        self._constants = recognizer.constants
        config = self._with_unseen(self._config())
        folder = path.resolve().parent
        super().__init__(name or path.stem, config, read_tokenizer_files(folder))
        self._check_widths()
        self.notes = self._differences()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Refuse a graph whose nodes lack what their operators need.

        Any node may lack any input or attribute, or have one of another type; a check at each of
        the hundred places that read one would say no more than this.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise CheckpointError(
                f"{self._path} is damaged: a node of its graph contradicts its operator.",
                export_again,
            ) from error

    def ternary(self, layer: int, module: str) -> TernaryWeight:
        """Give one matrix; see `Checkpoint.ternary`.

        Raises
        ------
        CheckpointError
            Where the matrix is all zero, not ternary, or has several scales.
        """
        _, columns = self.config.module_shape(module)
        with self._whole():
            return self._model.layers[layer].products[module].ternary(columns)

    def norm(self, name: str) -> npt.NDArray[np.float32]:
        """Give one norm; see `Checkpoint.norm`."""
        norm = self._norm_named(name)
        size = self.config.norm_shapes()[name]
        if not norm.weight:
            return np.ones(size, np.float32)
        with self._whole():
            weight = self._constants.value(norm.weight).reshape(-1).astype(np.float32)
        if not np.isfinite(weight).all():
            raise CheckpointError(f"Tensor {norm.weight} holds NaN or infinity.", export_again)
        return np.broadcast_to(weight, (size,)).copy()

    def embedding(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give token vectors; see `Checkpoint.embedding`."""
        with self._whole():
            return self._model.embedding.read(self._constants, rows)

    def head(self, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give the output head's rows; see `Checkpoint.head`."""
        if self.config.tied_head:
            return self.embedding(rows)
        with self._whole():
            return self._head(rows)

    def _norm_named(self, name: str) -> Norm:
        if name == "final_norm":
            assert self._model.final_norm is not None
            return self._model.final_norm
        _, layer, part = name.split(".")
        return self._model.layers[int(layer)].norms[part]

    def _head(self, rows: slice) -> npt.NDArray[np.float32]:
        product = self._model.head
        assert product is not None
        values = product.matrix.floats(rows)
        return values if product.gain == 1.0 else values * np.float32(product.gain)

    def _config(self) -> ModelConfig:
        """Give the numbers that the graph itself tells."""
        model = self._model
        if not model.layers:
            raise CheckpointError(f"{self._graph.path} has no decoder layers.", export_again)
        first = model.layers[0]
        size = first.attention.head_dim
        config = ModelConfig(
            family=_FAMILY,
            hidden_size=model.embedding.columns,
            intermediate_size=first.products["gate_proj"].rows,
            num_layers=len(model.layers),
            num_heads=first.products["q_proj"].rows // size,
            num_kv_heads=first.products["k_proj"].rows // size,
            head_dim=size,
            vocab_size=model.embedding.rows,
            rope_theta=first.attention.rope_theta,
            rms_norm_eps=first.norms["input_norm"].epsilon,
            activation=first.activation,
            attention_sub_norm="attention_sub_norm" in first.norms,
            ffn_sub_norm="ffn_sub_norm" in first.norms,
            tied_head=tied(model) or self._same_tables(model),
            max_context=_MAX_CONTEXT,
            bos_token_id=None,
            eos_token_ids=(),
        )
        for index, layer in enumerate(model.layers):
            self._check_alike(index, layer, config)
        return config

    def _check_alike(self, index: int, layer: Layer, config: ModelConfig) -> None:
        """Refuse a layer that differs from the first; fabric computes all alike."""
        rows = {module: config.module_shape(module)[0] for module in MODULES}
        found = {module: product.rows for module, product in layer.products.items()}
        epsilons = {norm.epsilon for norm in layer.norms.values()} | {
            self._model.final_norm.epsilon if self._model.final_norm else 0.0
        }
        alike = (
            found == rows
            and layer.activation == config.activation
            and layer.norms.keys() == self._model.layers[0].norms.keys()
            and layer.attention.head_dim == config.head_dim
            and layer.attention.rope_theta == config.rope_theta
            and epsilons == {config.rms_norm_eps}
        )
        if not alike:
            raise CheckpointError(
                f"Layer {index} of {self._graph.path} differs from the first in shape, activation, "
                "norms or positions.",
                "Use a model whose layers are all alike.",
            )

    def _check_widths(self) -> None:
        """Refuse matrices and norms that do not fit together."""
        model, config = self._model, self.config
        for layer in model.layers:
            for module, product in layer.products.items():
                product.check_columns(config.module_shape(module)[1])
        assert model.head is not None
        model.head.check_columns(config.hidden_size)
        for name, size in config.norm_shapes().items():
            weight = self._norm_named(name).weight
            if weight and np.prod(self._constants.shape(weight), dtype=float) not in (1, size):
                raise CheckpointError(
                    f"The norm {weight} has the shape {list(self._constants.shape(weight))}, not "
                    f"[{size}].",
                    export_again,
                )

    def _same_tables(self, model: Transformer) -> bool:
        """Whether the head repeats the embedding, as exporters write it that tie nothing."""
        assert model.head is not None
        total = model.embedding.rows
        if model.head.matrix.shape != (total, model.embedding.columns):
            return False
        for start in range(0, total, _COMPARED_ROWS):
            rows = slice(start, start + _COMPARED_ROWS)
            if not np.array_equal(model.embedding.read(self._constants, rows), self._head(rows)):
                return False
        return True

    def _with_unseen(self, config: ModelConfig) -> ModelConfig:
        """Add what the graph does not tell, and compare what both the graph and others do."""
        stored = self._graph.properties.get(CONFIG_KEY)
        if stored is None:
            return replace(config, **self._beside())
        try:
            declared = ModelConfig.from_dict(json.loads(stored))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"The description in the metadata of {self._graph.path} cannot be read.",
                export_again,
            ) from error
        config = replace(config, **{name: getattr(declared, name) for name in _UNSEEN})
        if different := [
            name for name, value in config.to_dict().items() if value != declared.to_dict()[name]
        ]:
            raise CheckpointError(
                f"The graph of {self._graph.path} contradicts its description in "
                f"{', '.join(different)}.",
                export_again,
            )
        return config

    def _beside(self) -> dict[str, Any]:
        """Read config.json beside the file, where exporters put it."""
        folder = self._graph.path.resolve().parent
        values: Mapping[str, Any] = {}
        for name in ("config.json", "generation_config.json"):
            if (folder / name).is_file():
                values = {**values, **read_json(folder / name)}
        eos, context = values.get("eos_token_id"), values.get("max_position_embeddings")
        bos = values.get("bos_token_id")
        eos = eos if isinstance(eos, list) else [eos]
        return {
            "bos_token_id": bos if isinstance(bos, int) else None,
            "eos_token_ids": tuple(token for token in eos if isinstance(token, int)),
            "max_context": context if isinstance(context, int) and context > 0 else _MAX_CONTEXT,
        }

    def _differences(self) -> tuple[str, ...]:
        """Say where the graph computes otherwise than fabric will."""
        products = [p for layer in self._model.layers for p in layer.products.values()]
        unrounded = next((product for product in products if not product.rounded), None)
        if unrounded is None:
            return ()
        return (
            f"{unrounded.node} takes activations in floating point; fabric quantises them to 8 "
            "bits, as BitNet b1.58 does, so its logits differ a little from the file's.",
        )
