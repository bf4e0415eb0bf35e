"""A decoder in a graph: from the embedding, layer by layer along the residual stream, to the head.

Nothing goes by the names of nodes or tensors, which every exporter chooses for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checkpoint import CheckpointError
from .attention import Attention, Attentions
from .constants import Constants
from .embedding import Embedding, find_embedding
from .graph import Node, OnnxGraph
from .matrices import DenseMatrix
from .norms import Norm, Norms
from .products import Product, Products
from .tensors import export_again


@dataclass
class Layer:
    """What one decoder layer is made of.

    Attributes
    ----------
    products : dict
        By the names of `MODULES`.
    norms : dict
        By ``input_norm``, ``post_attention_norm`` and, where there are any, ``attention_sub_norm``
        and ``ffn_sub_norm``.
    attention : Attention
    activation : str
        ``silu`` or ``relu2``.
    """

    products: dict[str, Product]
    norms: dict[str, Norm]
    attention: Attention
    activation: str = ""


@dataclass
class Transformer:
    """A whole decoder."""

    embedding: Embedding
    layers: list[Layer] = field(default_factory=list)
    final_norm: Norm | None = None
    head: Product | None = None


class Recognizer:
    """Reads a graph as a decoder.

    Parameters
    ----------
    graph : OnnxGraph
    """

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph, self.constants = graph, Constants(graph)
        self.norms = Norms(graph, self.constants)
        self.products = Products(graph, self.constants)
        self.attentions = Attentions(graph, self.constants, self.products, self.norms.by_output)
        self._by_source: dict[str, list[Product]] = {}
        for product in self.products.found:
            source = self.products.moved(product.source)
            self._by_source.setdefault(source, []).append(product)
        self._by_input: dict[str, list[Norm]] = {}
        for norm in self.norms.by_output.values():
            self._by_input.setdefault(self._origin(norm.x), []).append(norm)

    def transformer(self) -> Transformer:
        """Walk through the model.

        Raises
        ------
        CheckpointError
            At the first node that is not what a BitNet decoder has in its place.
        """
        embedding = find_embedding(self.graph, self.constants)
        result = Transformer(embedding)
        stream = self._origin(embedding.output)
        while result.head is None:
            norm = self._norm_of(stream)
            products = self._by_source.get(norm.y, [])
            if len(products) == 1 and products[0].rows == embedding.rows:
                result.final_norm, result.head = norm, products[0]
            else:
                stream = self._layer(norm, products, result)
        self._check_complete(result)
        return result

    def _layer(self, norm: Norm, products: list[Product], result: Transformer) -> str:
        """Read the layer that begins with a norm; give the residual stream after it."""
        index = len(result.layers)
        attention = self.attentions.found[index] if index < len(self.attentions.found) else None
        members = (attention.query, attention.key, attention.value) if attention else ()
        if attention is None or {id(p) for p in products} != {id(p) for p in members}:
            raise CheckpointError(
                f"After {norm.node}, in layer {index}, fabric looks for three linear layers that "
                f"lead to attention and finds {_listed(products)}.",
                "Export the model without fused projections and without adapters.",
            )
        layer = Layer(
            dict(zip(("q_proj", "k_proj", "v_proj"), members, strict=True)),
            {"input_norm": norm},
            attention,
        )
        result.layers.append(layer)
        output = self._after(layer, "o_proj", self._origin(attention.output), "attention_sub_norm")
        stream = self._sum(norm, output)
        middle = self._norm_of(stream)
        layer.norms["post_attention_norm"] = middle
        gated = self._gated(layer, middle)
        output = self._after(layer, "down_proj", gated, "ffn_sub_norm")
        return self._sum(middle, output)

    def _after(self, layer: Layer, module: str, tensor: str, sub_norm: str) -> Product:
        """Find the linear layer that takes a tensor, directly or through a norm of its own."""
        if norms := self._by_input.get(tensor, []):
            layer.norms[sub_norm] = norms[0]
            tensor = norms[0].y
        products = self._by_source.get(tensor, [])
        if len(products) != 1 or len(norms) > 1:
            raise CheckpointError(
                f"{self._maker(tensor)} should lead to {module} alone, but leads to "
                f"{_listed(products)}.",
                "Export the model without adapters.",
            )
        layer.products[module] = products[0]
        return products[0]

    def _gated(self, layer: Layer, norm: Norm) -> str:
        """Read gate and up after a norm; give the tensor of their product."""
        products = self._by_source.get(norm.y, [])
        ends = {self._origin(product.end): product for product in products}
        for node in self.graph.nodes if len(ends) == 2 else ():
            if node.kind != "Mul":
                continue
            for index in (0, 1):
                up = ends.get(self._origin(node.input(index)))
                other = self._activated(node.input(1 - index))
                if up is None or other is None or other[0] not in ends:
                    continue
                gate = ends[other[0]]
                if gate is not up:
                    layer.products |= {"gate_proj": gate, "up_proj": up}
                    layer.activation = other[1]
                    return node.outputs[0]
        raise CheckpointError(
            f"After {norm.node} fabric looks for a feed-forward block with a gate (silu or relu2) "
            f"and finds {_listed(products)}.",
            "Use a BitNet model: its feed-forward block is down(act(gate(x)) * up(x)).",
        )

    def _activated(self, tensor: str) -> tuple[str, str] | None:
        """Give what stands under a gate's activation, and which it is."""
        node = self._maker_or_none(tensor)
        if node is None:
            return None
        if node.kind in ("Swish", "QuickGelu") and node.attributes.get("alpha", 1.0) == 1.0:
            return self._origin(node.input(0)), "silu"
        if node.kind == "Pow" and self.constants.scalar(node.input(1)) == 2:
            return self._rectified(node.input(0))
        if node.kind != "Mul":
            return None
        first, second = (self._origin(name) for name in node.inputs)
        if first == second:
            return self._rectified(first)
        for x, sigmoid in ((first, second), (second, first)):
            maker = self.graph.producers.get(sigmoid)
            if maker is not None and maker.kind == "Sigmoid" and (
                self._origin(maker.input(0)) == x
            ):  # fmt: skip
                return x, "silu"
        return None

    def _rectified(self, tensor: str) -> tuple[str, str] | None:
        node = self._maker_or_none(tensor)
        if node is None or node.kind != "Relu":
            return None
        return self._origin(node.input(0)), "relu2"

    def _norm_of(self, stream: str) -> Norm:
        """Find the one norm that takes the residual stream."""
        norms = self._by_input.get(stream, [])
        if len(norms) != 1:
            raise CheckpointError(
                f"After {self._maker(stream)} fabric looks for one RMSNorm of the residual stream "
                f"and finds {len(norms)}.",
                "Use a BitNet model of the Llama kind: x + attention(norm(x)), then x + mlp(norm).",
            )
        return norms[0]

    def _sum(self, norm: Norm, product: Product) -> str:
        """Find the sum of the residual stream and a block's result."""
        wanted = {self._origin(norm.x), self._origin(product.end)}
        for node in self.graph.nodes:
            if node.kind == "Add" and {self._origin(name) for name in node.inputs} == wanted:
                return node.outputs[0]
        raise CheckpointError(
            f"What {product.node} gives is not added to the residual stream.",
            "Use a BitNet model of the Llama kind: x + attention(norm(x)), then x + mlp(norm(x)).",
        )

    def _check_complete(self, result: Transformer) -> None:
        """Refuse a graph that computes with more weights than were found."""
        assert result.head is not None
        used = {id(p) for layer in result.layers for p in layer.products.values()}
        used.add(id(result.head))
        for product in self.products.found:
            if id(product) not in used:
                raise CheckpointError(
                    f"{product.node} is a linear layer without a place in a BitNet decoder.",
                    "Export the model without adapters and without further heads.",
                )
        if len(self.attentions.found) != len(result.layers):
            raise CheckpointError(
                f"The graph has {len(self.attentions.found)} attentions and "
                f"{len(result.layers)} layers.",
                export_again,
            )
        if self._origin(self.graph.outputs[0]) != self._origin(result.head.end):
            raise CheckpointError(
                f"The first output, {self.graph.outputs[0]!r}, is not what {result.head.node} "
                "gives.",
                "Export the model with its logits as the first output and nothing after the head.",
            )

    def _origin(self, tensor: str) -> str:
        return self.products.moved(tensor)

    def _maker_or_none(self, tensor: str) -> Node | None:
        return self.graph.producers.get(self._origin(tensor))

    def _maker(self, tensor: str) -> str:
        node = self._maker_or_none(tensor)
        return str(node) if node is not None else f"the input {tensor!r}"


def tied(transformer: Transformer) -> bool:
    """Whether the head is the embedding's own tensor."""
    assert transformer.head is not None
    matrix = transformer.head.matrix
    return isinstance(matrix, DenseMatrix) and matrix.origin == transformer.embedding.tensor


def _listed(products: list[Product]) -> str:
    if not products:
        return "none"
    more = f" and {len(products) - 3} more" if len(products) > 3 else ""
    return ", ".join(str(product.node) for product in products[:3]) + more
