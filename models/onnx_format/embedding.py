"""The token embedding of a graph: floating point, or int8 with a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..checkpoint import ALL_ROWS, CheckpointError
from .constants import Constants
from .graph import Node, OnnxGraph
from .tensors import export_again


@dataclass(frozen=True)
class Embedding:
    """Where token vectors come from.

    Attributes
    ----------
    node : Node
        The lookup.
    tensor : str
        The stored table, past casts.
    table : str
        What is looked up: ``tensor``, or what the graph makes of it.
    scales : str
        Tensor of one scale a row; empty where there is none.
    output : str
        The token vectors.
    rows, columns : int
        V and H.
    """

    node: Node
    tensor: str
    table: str
    scales: str
    output: str
    rows: int
    columns: int

    def read(self, constants: Constants, rows: slice = ALL_ROWS) -> npt.NDArray[np.floating]:
        """Give token vectors, float16 or float32 [n, H].

        Raises
        ------
        CheckpointError
            Where one is NaN or infinite.
        """
        values = np.asarray(constants.rows(self.table, rows))
        if self.scales:
            scales = constants.value(self.scales).reshape(self.rows, 1)[rows]
            values = values.astype(np.float32) * scales.astype(np.float32)
        elif values.dtype not in (np.float16, np.float32):
            values = values.astype(np.float32)
        if not np.isfinite([values.min(initial=0), values.max(initial=0)]).all():
            raise CheckpointError(
                f"The embedding {self.tensor} holds NaN or infinity.", export_again
            )
        return values


def find_embedding(graph: OnnxGraph, constants: Constants) -> Embedding:
    """Find the lookup by the first input, which holds the tokens.

    Raises
    ------
    CheckpointError
        Where no constant table is looked up by an input of the graph.
    """
    lookups = [
        node
        for node in graph.nodes
        if node.kind == "Gather"
        and node.attributes.get("axis", 0) == 0
        and node.input(0) in constants
        and graph.canonical(node.input(1)) in graph.inputs
        and len(constants.shape(node.input(0))) == 2
    ]
    tables = [node for node in lookups if constants.shape(node.input(0))[1] > 1]
    tables = [node for node in tables if "position" not in graph.canonical(node.input(1))]
    if len(tables) != 1:
        raise CheckpointError(
            f"{graph.path} looks up {len(tables)} tables by its inputs; a decoder has one, its "
            "embedding.",
            "Export the whole model, from token ids to logits.",
        )
    (node,) = tables
    rows, columns = constants.shape(node.input(0))
    tensor = node.input(0)
    while (maker := graph.producers.get(tensor)) and maker.kind in (
        "Cast", "Identity", "DequantizeLinear", "Mul",
    ):  # fmt: skip
        tensor = maker.input(0)
    output, scales = _scaled(graph, constants, node)
    return Embedding(node, tensor, node.input(0), scales, output, rows, columns)


def _scaled(graph: OnnxGraph, constants: Constants, node: Node) -> tuple[str, str]:
    """Give the token vectors and the table of scales by which they are multiplied, if any."""
    users = graph.consumers.get(node.outputs[0], [])
    while len(users) == 1 and users[0].kind in ("Cast", "Identity"):
        users = graph.consumers.get(users[0].outputs[0], [])
    rows = constants.shape(node.input(0))[0]
    for user in users:
        for name in user.inputs if user.kind == "Mul" else ():
            lookup = graph.producers.get(graph.canonical(name))
            if lookup is None or lookup.kind != "Gather" or lookup is node:
                continue
            same = graph.canonical(lookup.input(1)) == graph.canonical(node.input(1))
            if same and lookup.input(0) in constants:
                shape = constants.shape(lookup.input(0))
                if np.prod(shape) == rows:
                    return user.outputs[0], lookup.input(0)
    return node.outputs[0], ""
