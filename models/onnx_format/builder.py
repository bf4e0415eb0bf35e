"""Nodes and constants of an ONNX graph, one call an operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper

from .store import TensorStore

OPSET = 18
"""Version of the standard operators: the lowest that has all that we use."""
MICROSOFT = "com.microsoft"


class GraphBuilder:
    """Collects the nodes and initialisers of a graph.

    Parameters
    ----------
    store : TensorStore
        Takes the initialisers' bytes.
    """

    def __init__(self, store: TensorStore) -> None:
        self.store = store
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._known: set[str] = set()
        self._scope: list[str] = []
        self._number = 0

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name everything that is added in this block after a part of the model."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def op(
        self, kind: str, *inputs: str, outputs: int = 1, output: str = "", domain: str = "",
        **attributes: Any,
    ) -> Any:  # fmt: skip
        """Add a node.

        Parameters
        ----------
        kind : str
            The operator.
        *inputs : str
            Its inputs; an empty one is left out.
        outputs : int
            How many outputs it has.
        output : str
            Name of its only output; made up by default.
        domain : str
            The operator's domain.
        **attributes
            Its attributes.

        Returns
        -------
        str or list of str
            The output's name; a list of several.
        """
        self._number += 1
        name = "/".join(["", *self._scope, f"{kind}_{self._number}"])
        names = [output or f"{name}_output_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    def weight(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add an initialiser; a name that is there already stands for the same content."""
        if name not in self._known:
            self._known.add(name)
            self.initializers.append(self.store.tensor(name, array))
        return name

    def scalar(self, value: float) -> str:
        """Give a float32 constant without dimensions."""
        return self.weight(f"float_{value!r}", np.array(value, np.float32))

    def integers(self, values: Sequence[int]) -> str:
        """Give a constant list of int64, as shapes and axes are."""
        name = "_".join(["ints", *(str(value).replace("-", "m") for value in values)])
        return self.weight(name, np.array(values, np.int64))

    def reshape(self, x: str, *shape: int) -> str:
        """Add a Reshape; 0 keeps a dimension, -1 is what is left."""
        return self.op("Reshape", x, self.integers(shape))

    def transpose(self, x: str, *order: int) -> str:
        """Add a Transpose."""
        return self.op("Transpose", x, perm=list(order))

    def cast(self, x: str, dtype: int) -> str:
        """Add a Cast; `dtype` is a `TensorProto.DataType`."""
        return self.op("Cast", x, to=dtype)

    def norm(self, x: str, weight: str, epsilon: float) -> str:
        """Add an RMSNorm, in the operators that onnxruntime fuses into one."""
        square = self.op("Pow", x, self.scalar(2.0))
        mean = self.op("ReduceMean", square, self.integers([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.scalar(epsilon)))
        return self.op("Mul", self.op("Div", x, root), weight)
