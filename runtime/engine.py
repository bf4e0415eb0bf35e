"""The training engine: parameters, moments and gradients as flat buffers, and the compiled step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .batch import Batch
from .bundle import Bundle
from .device import Machine, Tensor, aligned, tensor, to_numpy

Tensors = dict[str, np.ndarray]


def layer_tensors(bundle: Bundle) -> list[list[Tensor]]:
    """Return the frozen tensors of every layer, in the order of the compiled functions."""
    return [[tensor(array) for array in layer.values()] for layer in bundle.layers]


def end_tensors(bundle: Bundle) -> list[Tensor]:
    """Return embedding, final norm and head, in the order of the compiled functions."""
    return [tensor(array) for array in bundle.ends.values()]


def _sum(values: Tensor) -> float:
    """Return the sum of a float32 tensor, in float64."""
    return float(to_numpy(values).sum(dtype=np.float64))


class AdapterBuffers:
    """Flat ``(layers, n)`` buffers and, for each layer, their factors as tensors of their own."""

    def __init__(self, bundle: Bundle) -> None:
        layout = bundle.manifest["adapter"]
        self.layers = bundle.config["num_layers"]
        self.size = sum(math.prod(factor["shape"]) for factor in layout["factors"])
        self.rank, self.modules = layout["rank"], layout["modules"]
        self._factors = layout["factors"]

    def new(self) -> np.ndarray:
        """Return a zeroed ``(layers, n)`` float32 buffer."""
        return aligned((self.layers, self.size))

    def flat(self, buffer: np.ndarray) -> list[Tensor]:
        """Return each layer of a buffer as a tensor."""
        return [tensor(row) for row in buffer]

    def factors(self, buffer: np.ndarray) -> list[list[Tensor]]:
        """Return the factors of each layer of a buffer as tensors."""
        return [
            [
                tensor(row[f["offset"] :][: math.prod(f["shape"])].reshape(f["shape"]))
                for f in self._factors
            ]
            for row in buffer
        ]

    def blocks(self, row: np.ndarray, module: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return views of a module's ``A (r, K)`` and ``B (r, N)`` in one layer's buffer."""
        a = row[module["a_offset"] :][: self.rank * module["inputs"]]
        stride, rows = module["b_stride"], module["rows"]
        last = (self.rank - 1) * stride + rows
        b = np.lib.stride_tricks.as_strided(
            row[module["b_offset"] :][:last], (self.rank, rows), (4 * stride, 4)
        )
        return a.reshape(self.rank, module["inputs"]), b

    def names(self) -> list[tuple[int, dict[str, Any], str]]:
        """Return layer, module and full path of every adapted projection."""
        return [
            (layer, module, f"model.layers.{layer}.{module['path']}")
            for layer in range(self.layers)
            for module in self.modules
        ]


class TrainingEngine:
    """Losses, gradients and updates of a bundle's LoRA parameters.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.context, self.micro_batch = bundle, bundle.context, bundle.micro_batch
        self._buffers = AdapterBuffers(bundle)
        self._machine = Machine(bundle)
        self._adapter, self._gradient = self._buffers.new(), self._buffers.new()
        self._moments = (self._buffers.new(), self._buffers.new())
        self._inputs = {
            name: aligned((self.micro_batch * self.context,), "int32")
            for name in ("tokens", "labels", "starts")
        }
        self._inverse, self._hyper = aligned((1,)), aligned((8,))
        self._seeds = aligned((self._buffers.layers, 16), "int32")
        self._bind()

    def _bind(self) -> None:
        """Bind every constant argument once, so that a step is one call."""
        shape = (self.micro_batch, self.context)
        inputs = [
            tensor(self._inputs["tokens"]),
            tensor(self._inputs["labels"]),
            tensor(self._inputs["starts"].reshape(shape)),
        ]
        seeds = [[tensor(row[:1]) for row in self._seeds]] if self.bundle.lora["dropout"] else []
        model = [self._machine["rope"](), *end_tensors(self.bundle), layer_tensors(self.bundle)]
        factors = self._buffers.factors
        model.append(factors(self._adapter))
        evaluate = [*inputs, *model]
        train = [*inputs, *seeds, *model, factors(self._gradient), tensor(self._inverse)]
        flat = self._buffers.flat
        gradients = flat(self._gradient)
        update = [flat(self._adapter), *map(flat, self._moments), gradients, tensor(self._hyper)]
        self._train_step = self._machine.bind("train_step", train)
        self._evaluate_step = self._machine.bind("evaluate_step", evaluate)
        self._gradient_squares = self._machine.bind("gradient_squares", [gradients])
        self._update = self._machine.bind("update", update)

    def initialize_adapter(self, seed: int) -> None:
        """Start as PEFT does: A Kaiming-uniform with a = sqrt(5), B zero; moments zero."""
        for buffer in (self._adapter, self._gradient, *self._moments):
            buffer[:] = 0.0
        for index, (layer, module, _) in enumerate(self._buffers.names()):
            a, _b = self._buffers.blocks(self._adapter[layer], module)
            bound = 1.0 / math.sqrt(module["inputs"])
            a[:] = np.random.default_rng((seed, index)).uniform(-bound, bound, a.shape)

    def _load(self, batch: Batch, seed: int = 0) -> None:
        for name, destination in self._inputs.items():
            destination[:] = getattr(batch, name).reshape(-1)
        self._seeds[:, 0] = [
            np.random.SeedSequence((seed, layer)).generate_state(1)[0] >> 1
            for layer in range(len(self._seeds))
        ]

    def accumulate(self, batch: Batch, inverse_count: float, seed: int) -> float:
        """Add the gradients of ``inverse_count * sum(token losses)``.

        Parameters
        ----------
        batch : Batch
            ``(micro_batch, context)`` int32 tokens, labels and starts.
        inverse_count : float
            One over the labelled tokens of the whole step.
        seed : int
            Determines the dropout masks.

        Returns
        -------
        float
            Sum of the losses of the labelled tokens, in nats.
        """
        self._load(batch, seed)
        self._inverse[0] = inverse_count
        return _sum(self._train_step()[0])

    def evaluate(self, batch: Batch) -> float:
        """Return the sum of the losses of the labelled tokens, in nats, without dropout."""
        self._load(batch)
        return _sum(self._evaluate_step())

    def update(
        self,
        *,
        learning_rate: float,
        step: int,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float = 0.0,
    ) -> float:
        """Take one AdamW step and zero the gradients.

        Parameters
        ----------
        learning_rate, beta1, beta2, epsilon, weight_decay : float
            AdamW's, decay decoupled.
        step : int
            Counts from 1, for the bias corrections.
        clip_norm : float
            Largest global norm of the gradient; 0 for no clipping.

        Returns
        -------
        float
            Global norm of the gradient before clipping.
        """
        norm = math.sqrt(math.fsum(_sum(squares) for squares in self._gradient_squares()))
        clip = clip_norm / norm if 0.0 < clip_norm < norm else 1.0
        corrections = 1.0 - beta1**step, 1.0 - beta2**step
        self._hyper[:] = (learning_rate, beta1, beta2, epsilon, weight_decay, clip, *corrections)
        self._update()
        return norm

    def state(self) -> Tensors:
        """Return ``adapter``, ``moment1`` and ``moment2``, float32 ``(layers, n)``, not copied.

        The next update changes them: save them, or copy them, before it.
        """
        names = ("adapter", "moment1", "moment2")
        return dict(zip(names, (self._adapter, *self._moments), strict=True))

    def load_state(self, state: Tensors) -> None:
        """Take back what :meth:`state` gave."""
        self._adapter[:] = state["adapter"]
        self._moments[0][:] = state["moment1"]
        self._moments[1][:] = state["moment2"]
        self._gradient[:] = 0.0

    def adapter_tensors(self) -> Tensors:
        """Return ``<path>.lora_A (r, in)`` and ``<path>.lora_B (out, r)`` float32 copies."""
        return self._tensors_of(self._adapter)

    def gradient_tensors(self) -> Tensors:
        """Return the accumulated gradients under the names of :meth:`adapter_tensors`."""
        return self._tensors_of(self._gradient)

    def _tensors_of(self, buffer: np.ndarray) -> Tensors:
        tensors = {}
        for layer, module, path in self._buffers.names():
            a, b = self._buffers.blocks(buffer[layer], module)
            tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"] = a.copy(), b.T.copy()
        return tensors

    def load_adapter_tensors(self, tensors: Tensors) -> None:
        """Take the tensors of :meth:`adapter_tensors`; moments and gradients become zero."""
        for buffer in (self._gradient, *self._moments):
            buffer[:] = 0.0
        for layer, module, path in self._buffers.names():
            a, b = self._buffers.blocks(self._adapter[layer], module)
            a[:], b[:] = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"].T
