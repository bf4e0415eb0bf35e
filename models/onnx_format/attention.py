"""Attention in a graph: which projections are queries, keys and values, and how they are turned."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..checkpoint import CheckpointError
from .constants import Constants
from .graph import Node, OnnxGraph
from .products import Product, Products
from .rotary import rotary_theta

PRODUCTS = ("MatMul", "FusedMatMul")
FUSED = ("GroupQueryAttention", "MultiHeadAttention", "Attention")
# What may stand between a projection and attention: moving values about, and turning pairs.
_MOVES = ("Reshape", "Transpose", "Cast", "Identity", "Unsqueeze", "Squeeze", "Expand", "Concat",
          "Slice", "Split", "ScatterND", "Tile")  # fmt: skip
_TURNS = ("Mul", "Add", "Sub", "Neg", "Div", "RotaryEmbedding")
_NOT_COMPUTED = ("softcap", "smooth_softmax", "rotary_interleaved", "interleaved")


@dataclass(frozen=True)
class Attention:
    """One layer's attention.

    Attributes
    ----------
    query, key, value : Product
        Its projections.
    output : str
        What it gives, before any reordering.
    head_dim : int
    rope_theta : float
    """

    query: Product
    key: Product
    value: Product
    output: str
    head_dim: int
    rope_theta: float


class Attentions:
    """Finds the attention of every layer.

    Parameters
    ----------
    graph : OnnxGraph
    constants : Constants
    products : Products
    stops : iterable of str
        Outputs of norms, at which no search goes further up.

    Attributes
    ----------
    found : list of Attention
        In the order of the graph.
    """

    def __init__(
        self, graph: OnnxGraph, constants: Constants, products: Products, stops: Iterable[str]
    ) -> None:
        self._graph, self._constants, self._products = graph, constants, products
        self._ends = {product.end: product for product in products.found}
        self._stops = set(stops)
        self.found = [
            self._fused(node) if node.kind in FUSED else self._plain(node)
            for node in graph.nodes
            if node.kind in FUSED or node.kind == "Softmax"
        ]

    def _plain(self, softmax: Node) -> Attention:
        """Read attention written as two products with a softmax between."""
        nodes, _ = self._above(softmax.input(0))
        score = next((node for node in nodes if node.kind in PRODUCTS), None)
        if score is None:
            raise _unknown(softmax)
        context = self._below(softmax)
        query, turned = self._projection(score.input(0), softmax)
        key, turned_key = self._projection(score.input(1), softmax)
        value, _ = self._projection(context.input(1), softmax, turned=False)
        size = self._head_dim(query, key)
        theta = rotary_theta(self._graph, self._constants, turned, size, softmax)
        if theta != rotary_theta(self._graph, self._constants, turned_key, size, softmax):
            raise CheckpointError(
                f"Before {softmax} queries and keys are turned by different angles.",
                "Use a model with ordinary rotary positions.",
            )
        self._check_scale(softmax, score, size)
        return Attention(query, key, value, context.outputs[0], size, theta)

    def _fused(self, node: Node) -> Attention:
        """Read one of the operators that compute all of attention."""
        attributes = node.attributes
        kinds = [name for name in _NOT_COMPUTED if attributes.get(name)]
        if kinds or attributes.get("local_window_size", -1) != -1:
            raise CheckpointError(
                f"{node} has {kinds[0] if kinds else 'a sliding window'}, which fabric does not "
                "compute.",
                "Use a model with plain causal attention.",
            )
        if not node.input(1) or not node.input(2):
            raise CheckpointError(
                f"{node} takes queries, keys and values in one tensor, which fabric does not read.",
                "Export the model with a projection for each.",
            )
        query, turned = self._projection(node.input(0), node)
        key, _ = self._projection(node.input(1), node)
        value, _ = self._projection(node.input(2), node, turned=False)
        heads = attributes.get("num_heads", attributes.get("q_num_heads"))
        size = query.rows // heads if heads else self._head_dim(query, key)
        scale = attributes.get("scale", 0.0) or size**-0.5
        if not math.isclose(scale, size**-0.5, rel_tol=1e-4):
            raise _wrong_scale(node, scale, size)
        turned = [node, *turned] if attributes.get("do_rotary") else turned
        theta = rotary_theta(self._graph, self._constants, turned, size, node)
        return Attention(query, key, value, node.outputs[0], size, theta)

    def _above(self, tensor: str) -> tuple[list[Node], list[Product]]:
        """Give the nodes above a tensor, nearest first, and the linear layers that they end at."""
        nodes: list[Node] = []
        products: dict[str, Product] = {}
        seen, queue = {tensor}, [tensor]
        for name in queue:
            if name in self._ends:
                products[name] = self._ends[name]
                continue
            node = self._graph.producers.get(name)
            # A shape says nothing of where values come from, nor does what a norm stands on.
            if node is None or name in self._stops or name in self._constants or (
                node.kind == "Shape"
            ):  # fmt: skip
                continue
            nodes.append(node)
            for above in node.inputs:
                if above and above not in seen:
                    seen.add(above)
                    queue.append(above)
        return nodes, list(products.values())

    def _below(self, softmax: Node) -> Node:
        """Give the product that mixes the values."""
        tensor = softmax.outputs[0]
        for _ in range(8):
            users = [n for n in self._graph.consumers.get(tensor, []) if n.kind != "IsNaN"]
            if len(users) != 1:
                break
            if users[0].kind in PRODUCTS and users[0].input(0) == tensor:
                return users[0]
            if users[0].kind not in ("Cast", "Dropout", "Identity", "Reshape", "Where"):
                break
            tensor = users[0].outputs[0]
        raise _unknown(softmax)

    def _projection(
        self, tensor: str, where: Node, turned: bool = True
    ) -> tuple[Product, list[Node]]:
        """Find the projection that a tensor comes from, and everything above up to it."""
        nodes, products = self._above(tensor)
        if len(products) != 1:
            raise _unknown(where)
        known = (*_MOVES, *_TURNS) if turned else _MOVES
        reached, above = {products[0].end}, {id(node) for node in nodes}
        for node in self._graph.nodes:
            if id(node) not in above or reached.isdisjoint(node.inputs):
                continue
            reached.update(node.outputs)
            weighted = node.kind in _TURNS and any(
                name in self._constants and self._products.factor(name) is None
                for name in node.inputs
            )
            if node.kind not in known or (weighted and node.kind != "RotaryEmbedding"):
                raise CheckpointError(
                    f"{node}, between {products[0].node} and attention, is nothing that fabric "
                    "computes there.",
                    "Use a model without norms or weights of its own for queries, keys and values.",
                )
        return products[0], nodes

    def _head_dim(self, query: Product, key: Product) -> int:
        """Take the size of a head from the reshape that splits heads, or from the cache."""
        for product in (query, key):
            tensor = product.end
            for node in self._graph.consumers.get(tensor, []):
                if node.kind == "Reshape":
                    size = self._last_size(node.input(1))
                    if size is not None and size > 0 and product.rows % size == 0:
                        return size
        for name, shape in self._graph.inputs.items():
            if name.endswith(".key") and len(shape) == 4 and shape[3]:
                return int(shape[3])
        raise CheckpointError(
            f"The size of a head cannot be told from what follows {query.node}.",
            "Export the model with inputs for its key-value cache.",
        )

    def _last_size(self, shape: str) -> int | None:
        """Give the last number of a shape, which may be put together when the graph runs."""
        if shape in self._constants:
            values = self._constants.value(shape).reshape(-1)
            return int(values[-1]) if values.size >= 3 else None
        node = self._graph.producers.get(shape)
        if node is None or node.kind != "Concat" or len(node.inputs) < 3:
            return None
        last = self._constants.scalar(node.inputs[-1])
        return None if last is None else int(last)

    def _check_scale(self, softmax: Node, score: Node, size: int) -> None:
        """Refuse attention that is not divided by the root of the head's size."""
        scale = self._scale(softmax.input(0), score) * score.attributes.get("alpha", 1.0)
        for tensor in score.inputs:
            scale *= self._scale(tensor, None)
        if not math.isclose(abs(scale), size**-0.5, rel_tol=1e-3):
            raise _wrong_scale(softmax, scale, size)

    def _scale(self, tensor: str, end: Node | None) -> float:
        """Give the product of the constants that scale a tensor, from `end` on."""
        scale = 1.0
        while (node := self._graph.producers.get(tensor)) is not None and node is not end:
            step = 0
            if node.kind in ("Mul", "Div"):
                numbers = [self._products.factor(name) for name in node.inputs]
                step = 1 if numbers[0] is not None else 0
                number = numbers[1 - step]
                constant = number.constant if number is not None else None
                if constant is None:
                    break
                scale *= constant if node.kind == "Mul" else 1 / constant
            elif node.kind in ("Add", "Where"):
                step = self._masked(node)
            elif node.kind not in ("Cast", "Identity", "Reshape", "Transpose", "Expand"):
                break
            tensor = node.input(step)
        if end is not None and node is not end:
            raise _unknown(node or end)
        return scale

    def _masked(self, node: Node) -> int:
        """Give which input of a node that masks scores holds the scores."""
        for index, name in enumerate(node.inputs):
            if name not in self._constants and self._above(name)[1]:
                return index
        return 0


def _unknown(node: Node) -> CheckpointError:
    return CheckpointError(
        f"What stands around {node} is not attention as fabric knows it.",
        "Export the model with plain (eager) attention.",
    )


def _wrong_scale(node: Node, scale: float, size: int) -> CheckpointError:
    return CheckpointError(
        f"The attention at {node} is scaled by {scale:.6g}, not by 1 / sqrt({size}).",
        "Use a model with ordinary attention.",
    )
