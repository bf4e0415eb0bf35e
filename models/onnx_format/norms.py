"""RMSNorm in a graph: one fused operator, or the five to seven that exporters write for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .constants import Constants
from .graph import Node, OnnxGraph

_FUSED = ("SimplifiedLayerNormalization", "RMSNormalization")


@dataclass(frozen=True)
class Norm:
    """One RMSNorm.

    Attributes
    ----------
    node : Node
        Its last node.
    x, y : str
        What goes in, past casts, and what comes out.
    weight : str
        Tensor of its weight; empty where that is one.
    epsilon : float
        Added to the mean square, as the shortest decimal of its float32.
    """

    node: Node
    x: str
    y: str
    weight: str
    epsilon: float


class Norms:
    """Finds the norms of a graph.

    Parameters
    ----------
    graph : OnnxGraph
    constants : Constants

    Attributes
    ----------
    by_output : dict of str to Norm
    """

    def __init__(self, graph: OnnxGraph, constants: Constants) -> None:
        self._graph, self._constants = graph, constants
        self.by_output: dict[str, Norm] = {}
        bare: dict[str, tuple[str, float]] = {}
        for node in graph.nodes:
            if node.kind in _FUSED:
                epsilon = _shortest(node.attributes.get("epsilon", 1e-5))
                x = graph.canonical(node.input(0))
                self._add(Norm(node, x, node.outputs[0], node.input(1), epsilon))
            elif (found := self._normalised(node)) is not None:
                bare[node.outputs[0]] = found
                self._add(Norm(node, found[0], node.outputs[0], "", found[1]))
            elif (weighted := self._weighted(node, bare)) is not None:
                core, weight = weighted
                del self.by_output[core]
                self._add(Norm(node, bare[core][0], node.outputs[0], weight, bare[core][1]))

    def _add(self, norm: Norm) -> None:
        self.by_output[norm.y] = norm

    def _weighted(self, node: Node, bare: dict[str, tuple[str, float]]) -> tuple[str, str] | None:
        """Give the normalised tensor and the weight of ``weight * normalised``."""
        if node.kind != "Mul":
            return None
        for index in (0, 1):
            core, weight = self._graph.canonical(node.input(index)), node.input(1 - index)
            if core in bare and core in self.by_output and weight in self._constants:
                return core, weight
        return None

    def _normalised(self, node: Node) -> tuple[str, float] | None:
        """Give x and epsilon of ``x / sqrt(mean(x^2) + epsilon)``, in any of its forms."""
        if node.kind not in ("Mul", "Div"):
            return None
        orders = ((0, 1),) if node.kind == "Div" else ((0, 1), (1, 0))
        for i, j in orders:
            x = self._graph.canonical(node.input(i))
            epsilon = self._root(node.input(j), x, inverse=node.kind == "Mul")
            if epsilon is not None:
                return x, epsilon
        return None

    def _root(self, tensor: str, x: str, inverse: bool) -> float | None:
        """Give epsilon where a tensor is the root mean square of x, or one over it."""
        node = self._made(tensor)
        if node is None:
            return None
        if inverse and node.kind == "Reciprocal":
            return self._root(node.input(0), x, False)
        if inverse and node.kind == "Div" and self._constants.scalar(node.input(0)) == 1:
            return self._root(node.input(1), x, False)
        power = self._constants.scalar(node.input(1)) if node.kind == "Pow" else None
        if (node.kind == "Sqrt" and not inverse) or power == (-0.5 if inverse else 0.5):
            return self._mean_square(node.input(0), x)
        return None

    def _mean_square(self, tensor: str, x: str) -> float | None:
        """Give epsilon of ``mean(x^2) + epsilon``."""
        node = self._made(tensor)
        if node is None or node.kind != "Add":
            return None
        for i, j in ((0, 1), (1, 0)):
            epsilon, mean = self._constants.scalar(node.input(j)), self._made(node.input(i))
            if epsilon is None or mean is None or mean.kind != "ReduceMean":
                continue
            if self._is_square(self._made(mean.input(0)), x):
                return _shortest(epsilon)
        return None

    def _is_square(self, node: Node | None, x: str) -> bool:
        if node is None or self._graph.canonical(node.input(0)) != x:
            return False
        if node.kind == "Pow":
            return self._constants.scalar(node.input(1)) == 2
        return node.kind == "Mul" and self._graph.canonical(node.input(1)) == x

    def _made(self, tensor: str) -> Node | None:
        return self._graph.producers.get(self._graph.canonical(tensor))


def _shortest(value: float) -> float:
    """Give the shortest decimal that rounds to the same float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))
