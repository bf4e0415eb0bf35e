"""Training with layers, or some of them, that are read while the one before computes.

A step calls the module's functions of one layer, in the order and with the kernels of the whole
step: the losses and the adapter are the same bits. Where only one layer's gradients are kept, each
layer's update follows its gradients at once; the norm by which they are clipped is then that of
the step before, or the backward pass runs twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..targets import FabricError
from .batch import Batch
from .bundle import Bundle
from .engine import Tensors, TrainingEngine, end_tensors
from .host_ends import Ends, HeldEnds, HostEnds
from .layer_feed import LayerFeed
from .layer_inputs import LayerInputs
from .memory_space import MemorySpace, Tensor, Windows
from .one_layer import OneLayer

KEPT, LAYER, LAYER_TWICE = "all", "layer", "layer-twice"
"""What is kept of the gradients: those of all layers, or of one; the last with two backward
passes, of which the first finds the norm."""
FUNCTIONS = (
    "embed",
    "layer_forward",
    "layer_vjp",
    "head_loss",
    "head_loss_vjp",
    "layer_accumulate",
    "layer_squares",
    "layer_update",
)
"""What a step calls."""


@dataclass
class _Pending:
    """A micro-batch whose backward pass waits for the update: its states and their adjoint."""

    inputs: LayerInputs
    adjoint: Tensor


@dataclass(frozen=True)
class Outside:
    """What of a training is in memory only while it is used, beside layers.

    Attributes
    ----------
    ends : bool
        Embedding and head.
    evicted : int
        Layers that stay otherwise, and make room for the head.
    inputs : int
        The first so many layers' inputs.
    """

    ends: bool = False
    evicted: int = 0
    inputs: int = 0


class StreamingTrainingEngine(TrainingEngine):
    """A training engine over a `LayerFeed`, see `TrainingEngine`.

    Parameters
    ----------
    bundle : Bundle
        An open bundle.
    resident : int
        Layers that stay in memory.
    gradients : str
        ``"all"``; or ``"layer"`` or ``"layer-twice"``, with which a step is one micro-batch.
    outside : Outside
        What else is not in memory.

    Attributes
    ----------
    feed : LayerFeed
        Where the layers come from.
    """

    def __init__(
        self,
        bundle: Bundle,
        resident: int,
        gradients: str = KEPT,
        outside: Outside | None = None,
    ) -> None:
        self._resident, self._kept = resident, gradients
        self._outside = outside or Outside()
        self._pending: _Pending | None = None
        self._norm: float | None = None
        super().__init__(bundle)

    def _gradient_buffer(self, memory: MemorySpace) -> Any:
        if self._kept == KEPT:
            return super()._gradient_buffer(memory)
        return OneLayer(memory, self._layout)

    def _bind(self) -> None:
        """Prepare the functions of one layer instead of those of all."""
        machine, memory = self._machine, self._machine.memory
        outside, tokens = self._outside, self.micro_batch * self.context
        self.feed = LayerFeed(self.bundle, memory, self._resident, outside.evicted)
        self._ends: Ends = (
            HostEnds(self.bundle, memory, self.feed, tokens)
            if outside.ends
            else HeldEnds(end_tensors(self.bundle, memory), self.feed)
        )
        self._states = LayerInputs(memory, outside.inputs, self.bundle.path)
        self._rope = machine.lasting("rope")
        names = (*FUNCTIONS, "embed_rows") if outside.ends else FUNCTIONS
        self._calls = {name: machine[name] for name in names}
        dropout = bool(self.bundle.lora["dropout"])
        self._calls["layer_evaluate"] = machine["layer_evaluate" if dropout else "layer_forward"]
        self._factors = self._adapter.factors
        if self._kept == KEPT:
            gradients = self._gradient.flat
            update = [buffer.flat for buffer in (self._adapter, *self._moments, self._gradient)]
            self._gradient_squares = machine.bind("gradient_squares", [gradients])
            self._update = machine.bind("update", [*update, self._hyper.tensor])
        self._sums = self._gradient.factors

    def _arguments(self, layer: int, weights: list[Windows], seeded: bool) -> list[Any]:
        """Return what follows x in a layer function's parameters."""
        seed = [self._seeds[layer].tensor] if self._seeds and seeded else []
        starts = self._inputs["starts"].tensor
        return [*self._factors[layer], starts, self._rope, *seed, *weights]

    def _forward(self, batch: Batch, function: str, inputs: LayerInputs | None) -> Tensor:
        """Run the layers, whose inputs are kept where there is a place; return the last output."""
        x = self._ends.embedded(self._calls, self._inputs["tokens"].tensor, batch.tokens)
        for layer, weights in self.feed.visit(range(self._layout.layers)):
            seeded = function == "layer_forward"
            arguments = self._arguments(layer, weights, seeded)
            if inputs is not None:
                inputs.keep(layer, x)
            x = self._calls[function](x, *arguments)
        return x

    def _backward(self, work: _Pending, take: Any) -> None:
        """Run the layers' adjoints, last first; `take` is given each layer's gradients."""
        adjoint = work.adjoint
        order = reversed(range(self._layout.layers))
        for layer, weights in self.feed.visit(order):
            arguments = self._arguments(layer, weights, seeded=True)
            adjoints = self._calls["layer_vjp"](work.inputs[layer], *arguments, adjoint)
            adjoint = adjoints[0]
            sums = self._sums[layer if self._kept == KEPT else 0]
            self._calls["layer_accumulate"](*sums, *[adjoints[i + 1] for i in range(len(sums))])
            del adjoints
            take(layer, work)

    def accumulate(self, batch: Batch, inverse_count: float, seed: int) -> float:
        """Add a micro-batch's gradients, see `TrainingEngine.accumulate`.

        Where one layer's gradients are kept, the backward pass runs with the update.

        Raises
        ------
        FabricError
            If a layer can't be read, or a second micro-batch comes where one is a step.
        """
        if self._pending is not None:
            raise FabricError(
                "This bundle keeps the gradients of one layer, so a step is one micro-batch of "
                f"{self.micro_batch}.",
                f"Use --batch {self.micro_batch} --accumulate 1, or compile with --gradients all.",
            )
        self._load(batch, seed)
        self._inverse.write(np.float32(inverse_count))
        self._states.clear()
        last = self._forward(batch, "layer_forward", self._states)
        labels = self._inputs["labels"].tensor
        with self._ends.head() as ends:
            result = self._calls["head_loss_vjp"](last, labels, self._inverse.tensor, *ends)
            del ends
        work = _Pending(self._states, result[1])
        del last
        if self._kept == KEPT:
            self._backward(work, _let_go)
        else:
            self._pending = work
        return self._sum(result[0])

    def evaluate(self, batch: Batch) -> float:
        """Return the sum of the losses, see `TrainingEngine.evaluate`."""
        self._load(batch)
        last = self._forward(batch, "layer_evaluate", None)
        with self._ends.head() as ends:
            losses = self._calls["head_loss"](last, self._inputs["labels"].tensor, *ends)
            del ends
        return self._sum(losses)

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
        """Take one AdamW step, see `TrainingEngine.update`.

        Where one layer's gradients are kept, they are clipped by the norm of the step before; the
        first step, and every one of ``"layer-twice"``, runs the backward pass twice instead.
        """
        settings = (learning_rate, beta1, beta2, epsilon, weight_decay)
        if self._kept == KEPT:
            return super().update(
                learning_rate=learning_rate,
                step=step,
                beta1=beta1,
                beta2=beta2,
                epsilon=epsilon,
                weight_decay=weight_decay,
                clip_norm=clip_norm,
            )
        work, self._pending = self._pending, None
        if work is None:
            raise FabricError("There is no gradient to step by.", "Call accumulate first.")
        norm = self._norm
        if clip_norm > 0.0 and (norm is None or self._kept == LAYER_TWICE):
            norm = self._measured(work)
        clip = clip_norm / norm if norm is not None and 0.0 < clip_norm < norm else 1.0
        corrections = 1.0 - beta1**step, 1.0 - beta2**step
        self._hyper.write(np.array((*settings, clip, *corrections), np.float32))
        found = self._stepped(work)
        # Rounded, so that a checkpoint holds it exactly.
        self._norm = float(np.float32(found))
        return found

    def _measured(self, work: _Pending) -> float:
        """Return the norm of the gradients, which are forgotten again."""
        squares: list[Tensor] = []

        def take(layer: int, work: _Pending) -> None:
            squares.append(self._calls["layer_squares"](self._gradient.flat[0]))
            self._gradient.write(0.0)

        self._backward(work, take)
        return self._root(squares)

    def _stepped(self, work: _Pending) -> float:
        """Update every layer as its gradients come; return their norm."""
        squares: list[Tensor] = []
        parameters = [buffer.flat for buffer in (self._adapter, *self._moments)]

        def take(layer: int, work: _Pending) -> None:
            gradient = self._gradient.flat[0]
            squares.append(self._calls["layer_squares"](gradient))
            buffers = [buffer[layer] for buffer in parameters]
            self._calls["layer_update"](*buffers, gradient, self._hyper.tensor)
            _let_go(layer, work)

        self._backward(work, take)
        return self._root(squares)

    def _root(self, squares: Sequence[Tensor]) -> float:
        return math.sqrt(math.fsum(self._sum(square) for square in squares))

    def _clear(self) -> np.ndarray:
        self._pending = self._norm = None
        return super()._clear()

    def transfer_seconds(self) -> tuple[float, float]:
        """Return the seconds of reading layers so far, and of waiting for them."""
        return self.feed.times.reading, self.feed.times.waiting

    def state(self) -> Tensors:
        """Return the state; with the norm of the last step where the next one is clipped by it."""
        norm = {} if self._norm is None else {"norm": np.array([self._norm], np.float32)}
        return {**super().state(), **norm}

    def load_state(self, state: Tensors) -> None:
        """Take back what :meth:`state` gave."""
        super().load_state(state)
        self._pending = None
        self._norm = float(state["norm"][0]) if "norm" in state else None


def _let_go(layer: int, work: _Pending) -> None:
    """Forget a layer's input, which its adjoint was the last to need."""
    work.inputs.drop(layer)
