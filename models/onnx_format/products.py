"""The linear layers of a graph: products with a constant matrix, and the scaling around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..checkpoint import CheckpointError, TernaryWeight
from .constants import Constants
from .factors import Factor, Factors
from .graph import Node, OnnxGraph
from .matrices import BlockMatrix, DenseMatrix, Matrix
from .nbits import GUARD, GuardedColumns
from .tensors import export_again

# What changes neither the values nor, for one token, which of them there are.
_MOVES = ("Cast", "Identity", "Dropout", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze",
          "Flatten")  # fmt: skip
_ROUNDS = ("Round", "Clip", "Floor")


@dataclass(frozen=True)
class Product:
    """One linear layer, ``end = gain * (source @ matrix.T)`` apart from rounding.

    Attributes
    ----------
    node : Node
        The product itself.
    matrix : Matrix
    source : str
        The tensor that its input comes from, before any quantisation.
    end : str
        Its result, after all scaling.
    gain : float
        What the scaling amounts to.
    rounded : bool
        Whether its input is quantised on the way.
    guarded : bool
        Whether guard columns stand between the columns.
    """

    node: Node
    matrix: Matrix
    source: str
    end: str
    gain: float
    rounded: bool
    guarded: bool

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return self.matrix.shape[0]

    def check_columns(self, columns: int) -> None:
        """Refuse a matrix that does not fit an input of so many columns."""
        expected = self._layout(columns)
        if (columns if expected is None else expected.width) != self.matrix.shape[1]:
            raise CheckpointError(
                f"{self.node} takes {self.matrix.shape[1]} values, and {columns} come.",
                export_again,
            )

    def ternary(self, columns: int) -> TernaryWeight:
        """Give the codes and the scale of the layer, whose input has so many columns."""
        weight = self.matrix.ternary(self._layout(columns))
        if self.gain == 1.0:
            return weight
        codes = weight.codes if self.gain > 0 else -weight.codes
        return TernaryWeight(codes, weight.scale * abs(self.gain))

    def _layout(self, columns: int) -> GuardedColumns | None:
        if not self.guarded:
            return None
        assert isinstance(self.matrix, BlockMatrix)
        return GuardedColumns(columns, self.matrix.block)


@dataclass(frozen=True)
class _Operands:
    """A product as its operator has it."""

    x: str
    matrix: Matrix
    factor: Factor
    bias: str = ""
    zero: int = 0


class Products:
    """Finds the linear layers of a graph.

    Parameters
    ----------
    graph : OnnxGraph
    constants : Constants

    Attributes
    ----------
    found : list of Product
        In the order of the graph.
    """

    def __init__(self, graph: OnnxGraph, constants: Constants) -> None:
        self._graph, self._constants = graph, constants
        self._factors = Factors(graph, constants)
        readers: dict[str, Callable[[Node], _Operands | None]] = {
            "MatMul": self._matmul,
            "FusedMatMul": self._matmul,
            "Gemm": self._gemm,
            "MatMulNBits": self._nbits,
            "MatMulInteger": self._integer,
            "MatMulIntegerToFloat": self._integer_to_float,
            "DynamicQuantizeMatMul": self._dynamic,
        }
        self.found: list[Product] = []
        for node in graph.nodes:
            operands = readers[node.kind](node) if node.kind in readers else None
            if operands is not None:
                self.found.append(self._product(node, operands))

    def moved(self, tensor: str) -> str:
        """Follow a tensor up past what only moves its values about."""
        while (node := self._graph.producers.get(tensor)) and node.kind in _MOVES:
            tensor = node.input(0)
        return tensor

    def factor(self, tensor: str) -> Factor | None:
        """Give the factor that a tensor is; see `Factors.of`."""
        return self._factors.of(tensor)

    def _product(self, node: Node, operands: _Operands) -> Product:
        source, before, rounded, guarded = self._up(operands)
        end, after = self._down(node.outputs[0])
        gain = operands.factor.times(before).times(after).constant
        if gain is None or not math.isfinite(gain) or gain == 0:
            raise CheckpointError(
                f"What {node} is scaled by cannot be told: the scale of its activations does not "
                "cancel.",
                "Export the model with one of the usual forms of quantised linear layers.",
            )
        if operands.bias:
            self._refuse_bias(node, operands.bias)
        # A dynamic quantisation inside the operator itself rounds as well.
        rounded = rounded or node.kind == "DynamicQuantizeMatMul"
        return Product(node, operands.matrix, source, end, gain, rounded, guarded)

    def _up(self, operands: _Operands) -> tuple[str, Factor, bool, bool]:
        """Follow the activations up to where they come from."""
        tensor, factor, rounded, guarded = operands.x, Factor(), False, False
        while (node := self._graph.producers.get(tensor)) is not None:
            power, scale = 1, None
            if node.kind in ("Mul", "Div"):
                index, scale = self._scaling(node)
                if scale is None:
                    break
                tensor, power = node.input(index), 1 if node.kind == "Mul" else -1
            elif node.kind == "DynamicQuantizeLinear":
                scale, power, rounded = self._factors.of(node.outputs[1]), -1, True
                tensor = node.input(0)
            elif node.kind in ("QuantizeLinear", "DequantizeLinear"):
                scale, rounded = self._factors.of(node.input(1)), True
                power = -1 if node.kind == "QuantizeLinear" else 1
                if scale is None:
                    break
                tensor = node.input(0)
            elif node.kind in _MOVES or node.kind in _ROUNDS or self._picks(node):
                rounded, tensor = rounded or node.kind == "Round", node.input(0)
            elif node.kind in ("Max", "Min") and self._bounds(node):
                tensor = node.input(0)
            elif node.kind == "Pad" and (guard := self._guard(node)) is not None:
                guarded, tensor = guarded or guard, node.input(0)
            elif node.kind == "Add" and self._shifts(node, operands.zero):
                tensor = node.input(0)
            else:
                break
            if scale is not None:
                factor = factor.times(scale, power)
        return tensor, factor, rounded, guarded

    def _down(self, tensor: str) -> tuple[str, Factor]:
        """Follow the result down past all scaling."""
        factor = Factor()
        while len(users := self._graph.consumers.get(tensor, [])) == 1:
            (node,) = users
            if node.kind in ("Mul", "Div"):
                index, scale = self._scaling(node, uniform=True)
                if scale is None or node.input(index) != tensor:
                    break
                factor = factor.times(scale, 1 if node.kind == "Mul" else -1)
            elif node.kind == "Add" and any(name in self._constants for name in node.inputs):
                self._refuse_bias(node, next(n for n in node.inputs if n in self._constants))
            elif node.kind not in ("Cast", "Identity"):
                break
            tensor = node.outputs[0]
        return tensor, factor

    def _scaling(self, node: Node, uniform: bool = False) -> tuple[int, Factor | None]:
        """Give which input of a product or quotient is scaled, and by what."""
        for index in (0,) if node.kind == "Div" else (0, 1):
            other = self._factors.of(node.input(1 - index), uniform)
            if other is not None:
                return index, other
        return 0, None

    def _picks(self, node: Node) -> bool:
        """Whether it picks tokens, as heads do that only want the last."""
        return node.kind == "Gather" and node.input(0) not in self._constants

    def _bounds(self, node: Node) -> bool:
        return self._constants.scalar(node.input(1)) is not None

    def _shifts(self, node: Node, zero: int) -> bool:
        """Whether it moves whole numbers to the unsigned range, whose zero the product knows."""
        return zero != 0 and self._constants.scalar(node.input(1)) == zero

    def _guard(self, node: Node) -> bool | None:
        """Whether padding sets guards (True), only fills up (False), or is neither (None)."""
        if node.input(1) not in self._constants:
            return None
        *others, last = self._constants.value(node.input(1)).tolist()
        value = self._constants.scalar(node.input(2)) if node.input(2) else 0.0
        if any(others):
            return None
        return {(GUARD, True): True, (0.0, True): False, (0.0, False): False}.get(
            (value if value is not None else math.nan, last == 1)
        )

    def _refuse_bias(self, node: Node, tensor: str) -> None:
        if tensor not in self._constants or self._constants.value(tensor).any():
            raise CheckpointError(
                f"{node} adds a bias, which fabric does not compute.",
                "Use a model whose linear layers have no bias.",
            )

    def _dense(self, node: Node, index: int, transposed: bool, zero: int = 0) -> DenseMatrix | None:
        tensor = node.input(index)
        if tensor not in self._constants or len(self._constants.shape(tensor)) != 2:
            return None
        return DenseMatrix(node, self._constants, tensor, transposed, zero)

    def _matmul(self, node: Node) -> _Operands | None:
        matrix = self._dense(node, 1, not node.attributes.get("transB", 0))
        alpha = node.attributes.get("alpha", 1.0)
        if matrix is None or node.attributes.get("transA", 0):
            return None
        return _Operands(node.input(0), matrix, _number(alpha))

    def _gemm(self, node: Node) -> _Operands | None:
        operands = self._matmul(node)
        return None if operands is None else replace(operands, bias=node.input(2))

    def _nbits(self, node: Node) -> _Operands:
        return _Operands(node.input(0), BlockMatrix(node, self._constants), Factor(), node.input(5))

    def _integer(self, node: Node) -> _Operands | None:
        matrix = self._dense(node, 1, True, self._zero(node, 3))
        if matrix is None:
            return None
        fixed = node.input(2) in self._constants
        return _Operands(node.input(0), matrix, Factor(), zero=self._zero(node, 2) if fixed else 0)

    def _integer_to_float(self, node: Node) -> _Operands | None:
        matrix = self._dense(node, 1, True, self._zero(node, 5))
        scales = [self._factors.of(node.input(i), uniform=True) for i in (2, 3)]
        if matrix is None or scales[0] is None or scales[1] is None:
            return None
        return _Operands(node.input(0), matrix, scales[0].times(scales[1]), node.input(6))

    def _dynamic(self, node: Node) -> _Operands | None:
        matrix = self._dense(node, 1, True, self._zero(node, 3))
        scale = self._factors.of(node.input(2), uniform=True)
        if matrix is None or scale is None:
            return None
        return _Operands(node.input(0), matrix, scale, node.input(4))

    def _zero(self, node: Node, index: int) -> int:
        """Give a constant zero point, the same for all outputs."""
        tensor = node.input(index)
        if not tensor:
            return 0
        factor = self._factors.of(tensor, uniform=True)
        number = factor.constant if factor is not None else None
        if number is None and tensor in self._constants:
            values = self._constants.value(tensor)
            number = 0.0 if not values.any() else None
        if number is None:
            raise CheckpointError(
                f"{node} has a zero point for each output, or one that varies.",
                "Export the model with symmetric weights.",
            )
        return int(number)


def _number(value: float) -> Factor:
    factor = Factor()
    if value != 1.0:
        factor.numbers[value] += 1
    return factor
