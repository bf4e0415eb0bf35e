"""An ONNX file as nodes and tensors: parsed, checked, and its tensors mapped when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, helper, inliner

from ..checkpoint import CheckpointError
from .tensors import StoredTensor, export_again

_STANDARD = ("", "ai.onnx")
_SKIP_NORM = "SkipSimplifiedLayerNormalization"
_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes
    ----------
    kind : str
        Its type; which domain it is from tells nothing more for the operators that we know.
    name : str
        Its name, or what it makes where it has none.
    inputs, outputs : tuple of str
        Names of tensors; an empty one is left out.
    attributes : mapping
        By name, as Python values.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def input(self, index: int) -> str:
        """Give an input's name, empty where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.kind})"


class OnnxGraph:
    """The graph of a file.

    Parameters
    ----------
    path : pathlib.Path

    Attributes
    ----------
    nodes : list of Node
        Each after the nodes whose outputs it takes.
    producers : dict
        The node that makes a tensor.
    consumers : dict
        The nodes that take a tensor.
    tensors : dict of str to StoredTensor
        Initialisers and constants.
    inputs : dict
        Shape of each input; None where a dimension may be anything.
    outputs : list of str
    properties : dict of str to str
        The file's own metadata.

    Raises
    ------
    CheckpointError
        Where the file is damaged, or its graph is not one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        model = _load(path)
        graph = model.graph
        self.properties = {entry.key: entry.value for entry in model.metadata_props}
        self.tensors = {
            tensor.name: StoredTensor(tensor, path.parent) for tensor in graph.initializer
        }
        self.inputs = {
            value.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            )
            for value in graph.input
            if value.name not in self.tensors
        }
        self.outputs = [value.name for value in graph.output]
        self.nodes: list[Node] = []
        for proto in graph.node:
            self._add(proto)
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                self.consumers.setdefault(name, []).append(node)
        self._check_order()

    def canonical(self, tensor: str) -> str:
        """Follow a tensor up to where its values come from, past casts and copies."""
        while (node := self.producers.get(tensor)) and node.kind in ("Cast", "Identity", "Dropout"):
            tensor = node.input(0)
        return tensor

    def _add(self, proto: NodeProto) -> None:
        """Add a node; a constant becomes a tensor, a fused sum and norm become two nodes."""
        name = proto.name or next(iter(proto.output), "")
        if subgraph := next((a.name for a in proto.attribute if a.type in _SUBGRAPHS), None):
            raise CheckpointError(
                f"{self.path}: node {name!r} ({proto.op_type}) has a graph of its own "
                f"({subgraph}), which fabric does not read.",
                "Export the model without control flow, such as merged decoders with and without "
                "a cache.",
            )
        if proto.op_type == "Constant":
            tensor = _constant(proto)
            if tensor is not None and proto.output:
                self.tensors[proto.output[0]] = StoredTensor(tensor, self.path.parent)
                return
        attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        node = Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes)
        if node.kind != _SKIP_NORM:
            self.nodes.append(node)
            return
        total = node.outputs[3] if len(node.outputs) > 3 and node.outputs[3] else f"{name}.sum"
        self.nodes.append(Node("Add", name, node.inputs[:2], (total,)))
        norm = "SimplifiedLayerNormalization"
        inputs = (total, node.input(2))
        self.nodes.append(Node(norm, name, inputs, node.outputs[:1], attributes))

    def _check_order(self) -> None:
        """Refuse tensors made twice, and those used before they are made, so no walk goes round."""
        known = {"", *self.tensors, *self.inputs}
        for node in self.nodes:
            if missing := next((name for name in node.inputs if name not in known), None):
                raise CheckpointError(
                    f"{self.path}: {node} takes {missing!r}, which nothing before it makes.",
                    export_again,
                )
            if twice := next((name for name in node.outputs if name and name in known), None):
                raise CheckpointError(f"{self.path}: {twice!r} is made twice.", export_again)
            known.update(node.outputs)


def _constant(proto: NodeProto) -> onnx.TensorProto | None:
    """Give the tensor of a Constant node, None for a kind without numbers."""
    for attribute in proto.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in ("value_float", "value_floats"):
            values = list(attribute.floats) or [attribute.f]
            dims = [len(values)] if attribute.name.endswith("s") else []
            return helper.make_tensor("", onnx.TensorProto.FLOAT, dims, values)
        if attribute.name in ("value_int", "value_ints"):
            integers = list(attribute.ints) or [attribute.i]
            dims = [len(integers)] if attribute.name.endswith("s") else []
            return helper.make_tensor("", onnx.TensorProto.INT64, dims, integers)
    return None


def _load(path: Path) -> ModelProto:
    """Parse a file, without the tensors beside it."""
    try:
        model = onnx.load(path, load_external_data=False)
        if model.functions:
            model = inliner.inline_local_functions(model)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.", export_again) from error
    except (DecodeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or no ONNX file.", export_again) from error
    if not model.graph.node or not model.graph.output:
        raise CheckpointError(f"{path} is damaged or no ONNX file: no graph.", export_again)
    return model
