"""The training engine: parameters, moments and gradients as flat buffers, and the compiled step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .batch import Batch
from .bundle import Bundle
from .device import Machine
from .memory_space import MemorySpace, Tensor, Windows

Tensors = dict[str, np.ndarray]


def layer_tensors(bundle: Bundle, memory: MemorySpace) -> list[list[Windows]]:
    """Return the frozen tensors of every layer, in the order of the compiled functions."""
    return [[memory.constant(array) for array in layer.values()] for layer in bundle.layers]


def end_tensors(bundle: Bundle, memory: MemorySpace) -> list[Windows]:
    """Return embedding, final norm and head, in the order of the compiled functions."""
    return [memory.constant(array) for array in bundle.ends.values()]


class AdapterLayout:
    """Where each factor of each layer's adapter stands in a ``(layers, n)`` buffer."""

    def __init__(self, bundle: Bundle) -> None:
        layout = bundle.manifest["adapter"]
        self.layers = bundle.config["num_layers"]
        self.factors, self.size = layout["factors"], layout["size"]
        self.rank, self.modules = layout["rank"], layout["modules"]

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


def moment_words(size: int, moments: str) -> tuple[int, str]:
    """Return elements and dtype of a layer's buffer of a moment, as its kernel lays it out."""
    if moments == "f32":
        return size, "float32"
    return (size // 2 if moments == "bf16" else size // 4 + -(-size // 256)), "int32"


class AdapterBuffer:
    """A buffer of an adapter's layout for each layer: parameters, gradients or moments.

    Parameters
    ----------
    memory : MemorySpace
        Where.
    layout : AdapterLayout
        Of the adapter.
    moments : str
        ``"f32"`` for one number an element; what else moments may be stored as.
    """

    def __init__(self, memory: MemorySpace, layout: AdapterLayout, moments: str = "f32") -> None:
        self._size, dtype = moment_words(layout.size, moments)
        self._blocks = [memory.zeros((self._size,), dtype) for _ in range(layout.layers)]
        self._factors = layout.factors

    @property
    def flat(self) -> list[Tensor]:
        """Each layer as a tensor."""
        return [block.tensor for block in self._blocks]

    @property
    def factors(self) -> list[list[Tensor]]:
        """The factors of each layer as tensors."""
        return [
            [block.part(factor["offset"], factor["shape"]) for factor in self._factors]
            for block in self._blocks
        ]

    def gather(self) -> None:
        """Let each layer's whole have what functions wrote to its factors."""
        for block in self._blocks:
            block.gather()

    def scatter(self) -> None:
        """Let each layer's factors have what functions wrote to the whole."""
        for block in self._blocks:
            block.scatter()

    def read(self) -> np.ndarray:
        """Return what is stored, a row for each layer, a copy."""
        return np.stack([block.read() for block in self._blocks])

    def write(self, values: np.ndarray | float) -> None:
        """Replace what is stored by other rows, or all by one number."""
        rows = np.broadcast_to(values, (len(self._blocks), self._size))
        for block, row in zip(self._blocks, rows, strict=True):
            block.write(row)


class TrainingEngine:
    """Losses, gradients and updates of a bundle's LoRA parameters.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.context, self.micro_batch = bundle, bundle.context, bundle.micro_batch
        self._machine, self._layout = Machine(bundle), AdapterLayout(bundle)
        memory = self._machine.memory
        self._adapter = AdapterBuffer(memory, self._layout)
        moments = bundle.manifest.get("moments", "f32")
        self._moments = [AdapterBuffer(memory, self._layout, moments) for _ in range(2)]
        self._gradient = self._gradient_buffer(memory)
        rows = (self.micro_batch * self.context,)
        self._inputs = {
            name: memory.zeros(shape, "int32")
            for name, shape in (
                ("tokens", rows),
                ("labels", rows),
                ("starts", (self.micro_batch, self.context)),
            )
        }
        self._inverse, self._hyper = memory.zeros((1,)), memory.zeros((8,))
        self._seeds = [
            memory.zeros((1,), "int32")
            for _ in range(self._layout.layers if bundle.lora["dropout"] else 0)
        ]
        self._bind()

    def _gradient_buffer(self, memory: MemorySpace) -> Any:
        """Return the memory of the gradients: an `AdapterBuffer`, or what has its interface."""
        return AdapterBuffer(memory, self._layout)

    def _bind(self) -> None:
        """Bind every constant argument once, so that a step is one call."""
        bind, memory = self._machine.bind, self._machine.memory
        inputs = [block.tensor for block in self._inputs.values()]
        seeds = [[block.tensor for block in self._seeds]] if self._seeds else []
        ends, layers = end_tensors(self.bundle, memory), layer_tensors(self.bundle, memory)
        model = [self._machine.lasting("rope"), *ends, layers, self._adapter.factors]
        gradients = self._gradient.flat
        update = [buffer.flat for buffer in (self._adapter, *self._moments, self._gradient)]
        self._train_step = bind(
            "train_step", [*inputs, *seeds, *model, self._gradient.factors, self._inverse.tensor]
        )
        self._evaluate_step = bind("evaluate_step", [*inputs, *model])
        self._gradient_squares = bind("gradient_squares", [gradients])
        self._update = bind("update", [*update, self._hyper.tensor])

    @property
    def memory(self) -> MemorySpace:
        """Where the tensors live."""
        return self._machine.memory

    @property
    def device_memory_mib(self) -> float:
        """Most memory of a device held at once, MiB; 0 where the processor itself computes."""
        return self._machine.memory.peak_mib()

    def initialize_adapter(self, seed: int) -> None:
        """Start as PEFT does: A Kaiming-uniform with a = sqrt(5), B zero; moments zero."""
        adapter = self._clear()
        for index, (layer, module, _) in enumerate(self._layout.names()):
            a, _b = self._layout.blocks(adapter[layer], module)
            bound = 1.0 / math.sqrt(module["inputs"])
            a[:] = np.random.default_rng((seed, index)).uniform(-bound, bound, a.shape)
        self._adapter.write(adapter)

    def _clear(self) -> np.ndarray:
        """Zero gradients and moments; return zeros to fill a new adapter into."""
        for buffer in (self._gradient, *self._moments):
            buffer.write(0.0)
        return np.zeros((self._layout.layers, self._layout.size), np.float32)

    def _load(self, batch: Batch, seed: int = 0) -> None:
        for name, block in self._inputs.items():
            block.write(getattr(batch, name).reshape(block.tensor.shape))
        for layer, block in enumerate(self._seeds):
            block.write(np.random.SeedSequence((seed, layer)).generate_state(1)[0] >> 1)

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
        self._inverse.write(np.float32(inverse_count))
        return self._sum(self._train_step()[0])

    def evaluate(self, batch: Batch) -> float:
        """Return the sum of the losses of the labelled tokens, in nats, without dropout."""
        self._load(batch)
        return self._sum(self._evaluate_step())

    def _sum(self, values: Tensor) -> float:
        """Return the sum of a float32 tensor, in float64."""
        return float(self._machine.memory.read(values).sum(dtype=np.float64))

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
        self._gradient.gather()
        norm = math.sqrt(self._sum(self._gradient_squares()))
        clip = clip_norm / norm if 0.0 < clip_norm < norm else 1.0
        corrections = 1.0 - beta1**step, 1.0 - beta2**step
        hyper = (learning_rate, beta1, beta2, epsilon, weight_decay, clip, *corrections)
        self._hyper.write(np.array(hyper, np.float32))
        self._update()
        for buffer in (self._adapter, self._gradient):
            buffer.scatter()
        return norm

    def state(self) -> Tensors:
        """Return copies of ``adapter``, ``moment1`` and ``moment2``.

        The adapter is float32 ``(layers, n)``; so are moments, or, where they are stored in fewer
        bits, int32 words ``(layers, w)``.
        """
        names = ("adapter", "moment1", "moment2")
        buffers = (self._adapter, *self._moments)
        return {name: buffer.read() for name, buffer in zip(names, buffers, strict=True)}

    def load_state(self, state: Tensors) -> None:
        """Take back what :meth:`state` gave."""
        self._adapter.write(state["adapter"])
        self._moments[0].write(state["moment1"])
        self._moments[1].write(state["moment2"])
        self._gradient.write(0.0)

    def adapter_tensors(self) -> Tensors:
        """Return ``<path>.lora_A (r, in)`` and ``<path>.lora_B (out, r)`` float32 copies."""
        return self._tensors_of(self._adapter)

    def gradient_tensors(self) -> Tensors:
        """Return the accumulated gradients under the names of :meth:`adapter_tensors`."""
        return self._tensors_of(self._gradient)

    def _tensors_of(self, buffer: AdapterBuffer) -> Tensors:
        tensors, values = {}, buffer.read()
        for layer, module, path in self._layout.names():
            a, b = self._layout.blocks(values[layer], module)
            tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"] = a.copy(), b.T.copy()
        return tensors

    def load_adapter_tensors(self, tensors: Tensors) -> None:
        """Take the tensors of :meth:`adapter_tensors`; moments and gradients become zero."""
        adapter = self._clear()
        for layer, module, path in self._layout.names():
            a, b = self._layout.blocks(adapter[layer], module)
            a[:], b[:] = tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"].T
        self._adapter.write(adapter)
