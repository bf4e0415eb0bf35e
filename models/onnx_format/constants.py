"""The part of a graph that depends on no input: shapes without reading, values when asked for.

Exporters leave weights in many forms: transposed, dequantised by operators, quantised from masters
in the graph itself. All are a few elementwise operators on initialisers, which this evaluates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from ..checkpoint import CheckpointError
from .graph import Node, OnnxGraph
from .tensors import export_again

Array = npt.NDArray[Any]
_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "Identity": lambda x: x,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": lambda a, b: np.divide(a, b) if a.dtype.kind == "f" else a // b,
    "Abs": np.abs,
    "Neg": np.negative,
    "Sign": np.sign,
    "Round": np.rint,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Pow": lambda a, b: np.power(a, b).astype(a.dtype),
    "Max": np.maximum,
    "Min": np.minimum,
    "BitwiseAnd": np.bitwise_and,
}
_REDUCTIONS: dict[str, Callable[..., Array]] = {
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
    "ReduceSum": np.sum,
}
_SHAPED = (
    "Cast", "Clip", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Concat",
    "BitShift", "DequantizeLinear", "QuantizeLinear", *_REDUCTIONS,
)  # fmt: skip
_KEPT_SIZE = 4096
_DEEPEST = 64


class Constants:
    """Evaluates constant tensors of a graph.

    Parameters
    ----------
    graph : OnnxGraph
    """

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self._names = set(graph.tensors)
        self._kept: dict[str, Array] = {}
        self._stored = sum(tensor.size for tensor in graph.tensors.values())
        for node in graph.nodes:
            known = node.kind in _ELEMENTWISE or node.kind in _SHAPED
            if known and all(name in self._names or not name for name in node.inputs):
                self._names.update(node.outputs)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._names

    def value(self, tensor: str, depth: int = 0) -> Array:
        """Give a constant's values; large ones are worked out anew each time.

        Raises
        ------
        CheckpointError
            Where the operators do not fit their inputs.
        """
        if tensor in self._kept:
            return self._kept[tensor]
        stored = self.graph.tensors.get(tensor)
        if stored is not None:
            result = stored.array()
        else:
            node = self.graph.producers[tensor]
            if depth > _DEEPEST:
                raise CheckpointError(f"{node} stands on too many constants.", export_again)
            inputs = [self.value(name, depth + 1) if name else None for name in node.inputs]
            try:
                sizes = [x.size for x in inputs if x is not None]
                if node.kind == "Concat" and sum(sizes) > self._stored:
                    raise ValueError("more than the whole file holds")
                with np.errstate(all="ignore"):
                    result = _evaluate(node, inputs)
            except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
                raise CheckpointError(f"{node} does not fit its inputs.", export_again) from error
        if result.size <= _KEPT_SIZE:
            self._kept[tensor] = result
        return result

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Give a constant's shape, without reading large values where that is possible."""
        axes = None
        while tensor not in self.graph.tensors:
            node = self.graph.producers[tensor]
            if node.kind == "Transpose":
                order = node.attributes.get("perm")
                inner = self.shape(node.input(0))
                try:
                    axes = [inner[i] for i in order] if order else inner[::-1]
                except IndexError as error:
                    raise CheckpointError(
                        f"{node} does not fit its inputs.", export_again
                    ) from error
                return tuple(axes)
            if node.kind not in ("Cast", "Identity", "DequantizeLinear", "Round", "Clip", "Abs"):
                return self.value(tensor).shape
            tensor = node.input(0)
        return self.graph.tensors[tensor].shape

    def rows(self, tensor: str, rows: slice, turned: bool = False) -> Array:
        """Give some rows of a matrix, or of its transpose.

        Where casts and copies made it, only those rows are worked out.
        """
        casts = []
        while tensor not in self.graph.tensors:
            node = self.graph.producers[tensor]
            if node.kind == "Transpose" and len(self.shape(tensor)) == 2:
                turned = turned != (list(node.attributes.get("perm", (1, 0))) == [1, 0])
            elif node.kind == "Cast":
                casts.append(node)
            elif node.kind != "Identity":
                break
            tensor = node.input(0)
        values = self.value(tensor)
        values = values[:, rows].T if turned else values[rows]
        for node in reversed(casts):
            values = _cast(node, [values])
        return values

    def scalar(self, tensor: str) -> float | None:
        """Give the number that a constant of one element holds, None for any other tensor."""
        if tensor not in self._names or np.prod(self.shape(tensor), dtype=float) != 1:
            return None
        return float(self.value(tensor).reshape(()))


def _evaluate(node: Node, inputs: list[Any]) -> Array:
    """Compute one node."""
    kind, attributes = node.kind, node.attributes
    x = inputs[0]
    if kind in _ELEMENTWISE:
        largest = max(array.size for array in inputs)
        if np.broadcast(*inputs).size > max(largest, _KEPT_SIZE):
            raise ValueError("a product of two vectors, not of a weight and its scales")
        return np.asarray(_ELEMENTWISE[kind](*inputs))
    if kind in _REDUCTIONS:
        axes = inputs[1].tolist() if len(inputs) > 1 else attributes.get("axes")
        axis = None if axes is None else tuple(axes)
        keep = bool(attributes.get("keepdims", 1))
        return np.asarray(_REDUCTIONS[kind](x, axis=axis, keepdims=keep), x.dtype)
    return np.asarray(_SHAPERS[kind](node, inputs))


def _cast(node: Node, inputs: list[Any]) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(node.attributes["to"])
    x = inputs[0].astype(dtype)
    return x.astype(np.float32) if dtype.name == "bfloat16" else x


def _clip(node: Node, inputs: list[Any]) -> Array:
    low, high = (
        inputs[i] if i < len(inputs) else node.attributes.get(name)
        for i, name in ((1, "min"), (2, "max"))
    )
    return np.clip(inputs[0], low, high)


def _reshape(node: Node, inputs: list[Any]) -> Array:
    x, shape = inputs[0], inputs[1].tolist()
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _axes(node: Node, inputs: list[Any]) -> tuple[int, ...] | None:
    axes = inputs[1].tolist() if len(inputs) > 1 else node.attributes.get("axes")
    return None if axes is None else tuple(axes)


def _slice(node: Node, inputs: list[Any]) -> Array:
    x, starts, ends, *rest = inputs
    axes = rest[0].tolist() if rest and rest[0] is not None else range(len(starts))
    steps = rest[1].tolist() if len(rest) > 1 else [1] * len(starts)
    where = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        where[axis] = slice(start, end, step)
    return x[tuple(where)]


def _shift(node: Node, inputs: list[Any]) -> Array:
    left = node.attributes.get("direction", b"") == b"LEFT"
    return np.left_shift(*inputs) if left else np.right_shift(*inputs)


def _concat(node: Node, inputs: list[Any]) -> Array:
    return np.concatenate(inputs, axis=node.attributes["axis"])


def _along(node: Node, x: Array, parameter: Array) -> Array:
    """Bring the scale or zero point of a tensor, a row, or a block to the shape of x."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = node.attributes.get("axis", 1) % x.ndim
    if parameter.ndim == x.ndim:
        block = min(node.attributes.get("block_size", 1), x.shape[axis])
        return np.repeat(parameter, block, axis=axis).take(range(x.shape[axis]), axis=axis)
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def _dequantize(node: Node, inputs: list[Any]) -> Array:
    x, scale = inputs[:2]
    values = x.astype(np.float32)
    if len(inputs) > 2 and inputs[2] is not None:
        values -= _along(node, x, inputs[2]).astype(np.float32)
    return values * _along(node, x, scale).astype(np.float32)


def _quantize(node: Node, inputs: list[Any]) -> Array:
    x, scale = inputs[:2]
    zero = inputs[2] if len(inputs) > 2 else np.zeros(1, np.uint8)
    values = np.rint(x / _along(node, x, scale)) + _along(node, x, zero)
    limits = np.iinfo(zero.dtype)
    return np.clip(values, limits.min, limits.max).astype(zero.dtype)


_SHAPERS: dict[str, Callable[[Node, list[Any]], Array]] = {
    "Cast": _cast,
    "Clip": _clip,
    "Transpose": lambda node, inputs: inputs[0].transpose(node.attributes.get("perm")),
    "Reshape": _reshape,
    "Unsqueeze": lambda node, inputs: np.expand_dims(inputs[0], _axes(node, inputs) or ()),
    "Squeeze": lambda node, inputs: np.squeeze(inputs[0], _axes(node, inputs)),
    "Slice": _slice,
    "Concat": _concat,
    "BitShift": _shift,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
}
