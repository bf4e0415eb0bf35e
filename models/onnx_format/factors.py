"""The numbers that a graph multiplies by around a matrix product, found without running it.

A BitLinear in a graph is ``(round(x f) @ W) * g``, with `f` and `g` made of constants and of the
token's absmax. What counts is ``f g``: there the absmax must cancel, and what is left is the
weight's scale. Constants that appear above and below cancel as they are, so that a scale that
stands in the file comes out with its very bits.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .constants import Constants
from .graph import Node, OnnxGraph

_ABSMAX = ("ReduceMax", "TopK")
_DEEPEST = 32


@dataclass(frozen=True)
class Factor:
    """A product of constants and tensors, each to a whole power.

    Attributes
    ----------
    numbers : Counter
        Power of each constant.
    tensors : Counter
        Power of each tensor that is known only when the graph runs.
    """

    numbers: Counter[float] = field(default_factory=Counter)
    tensors: Counter[str] = field(default_factory=Counter)

    def times(self, other: Factor, power: int = 1) -> Factor:
        """Multiply by another one, or with the power -1 divide."""
        result = Factor(Counter(self.numbers), Counter(self.tensors))
        for number, count in other.numbers.items():
            result.numbers[number] += power * count
        for tensor, count in other.tensors.items():
            result.tensors[tensor] += power * count
        return result

    @property
    def constant(self) -> float | None:
        """The number, None where a tensor is left over."""
        if any(self.tensors.values()):
            return None
        product = 1.0
        for number, power in self.numbers.items():
            if power:
                product *= number if power == 1 else _power(number, power)
        return product


def _power(number: float, power: int) -> float:
    try:
        return float(number**power)
    except (ZeroDivisionError, OverflowError):
        return math.nan


class Factors:
    """Finds the factors of a graph.

    Parameters
    ----------
    graph : OnnxGraph
    constants : Constants
    """

    def __init__(self, graph: OnnxGraph, constants: Constants) -> None:
        self._graph, self._constants = graph, constants

    def of(self, tensor: str, uniform: bool = False, depth: int = 0) -> Factor | None:
        """Give the factor that a tensor is, or None for a tensor that is no mere factor.

        Parameters
        ----------
        tensor : str
        uniform : bool
            Whether a vector of equal constants counts, as one scale for each output may be.
        depth : int
            How many nodes below the one that was asked for.
        """
        if tensor in self._constants:
            return self._constant(tensor, uniform)
        node = self._graph.producers.get(tensor)
        if node is None or depth > _DEEPEST:
            return None
        kind = node.kind
        if kind in _ABSMAX and self._is_absmax(node):
            return Factor(tensors=Counter([self._graph.canonical(node.outputs[0])]))
        if kind == "DynamicQuantizeLinear" and tensor == node.outputs[1]:
            return Factor(tensors=Counter([tensor]))
        if kind in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
            return self.of(node.input(0), uniform, depth + 1)
        if kind in ("Mul", "Div"):
            first, second = (self.of(name, uniform, depth + 1) for name in node.inputs)
            if first is None or second is None:
                return None
            return first.times(second, 1 if kind == "Mul" else -1)
        if kind == "Reciprocal":
            inner = self.of(node.input(0), uniform, depth + 1)
            return None if inner is None else Factor().times(inner, -1)
        if kind in ("Clip", "Max"):
            return self._bounded(node, uniform, depth)
        return None

    def _constant(self, tensor: str, uniform: bool) -> Factor | None:
        shape = self._constants.shape(tensor)
        size = math.prod(shape)
        if size != 1 and not (uniform and size and max(shape) == size):
            return None
        values = self._constants.value(tensor).reshape(-1)
        if values.dtype.kind not in "fiu" or (values != values[0]).any():
            return None
        number = float(values[0])
        return Factor(Counter([number])) if number not in (0.0, 1.0) else (
            Factor() if number else None
        )  # fmt: skip

    def _bounded(self, node: Node, uniform: bool, depth: int) -> Factor | None:
        """A lower bound keeps zero from being divided by; it changes no other token."""
        varying = [name for name in node.inputs if name and name not in self._constants]
        if len(varying) != 1:
            return None
        return self.of(varying[0], uniform, depth + 1)

    def _is_absmax(self, node: Node) -> bool:
        """Whether a maximum is that of magnitudes, over the last axis."""
        source = self._graph.producers.get(self._graph.canonical(node.input(0)))
        if source is None or source.kind != "Abs":
            return False
        if node.kind == "TopK":
            return self._constants.scalar(node.input(1)) == 1
        axes = node.attributes.get("axes")
        if axes is None and node.input(1) in self._constants:
            axes = self._constants.value(node.input(1)).tolist()
        return axes is not None and len(np.atleast_1d(axes)) == 1
