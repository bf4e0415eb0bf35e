"""TIR's expressions as instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import Call, TensorLoad

from .context import Context, Node, identity
from .grammar import Op
from .memory import View
from .values import DType, Value, part_lanes

_PLAIN = (tirx.IntImm, tirx.FloatImm, tirx.Var)
"""Expressions that cost nothing, so that a selection between them needs no branch."""
_WIDEST_ACCESS = 16
"""Bytes that a thread moves at once."""


class Expressions:
    """Writes expressions.

    Parameters
    ----------
    context : Context
        The kernel's.
    call : callable
        Writes a call; returns its value, None where it has none.
    """

    def __init__(self, context: Context, call: Callable[[Node], Value | None]) -> None:
        self.context, self._call = context, call
        self.arithmetic = arithmetic = context.arithmetic
        self.builder, self.types = context.builder, context.types
        self._analyzer: Any = tvm.sym.Analyzer()
        self._binary: dict[type, Callable[[Value, Value], Value]] = {
            tirx.Add: arithmetic.add,
            tirx.Sub: arithmetic.subtract,
            tirx.Mul: arithmetic.multiply,
            tirx.Div: arithmetic.divide,
            tirx.Mod: arithmetic.remainder,
            tirx.FloorDiv: arithmetic.floor_divide,
            tirx.FloorMod: arithmetic.floor_remainder,
            tirx.Min: arithmetic.minimum,
            tirx.Max: arithmetic.maximum,
            tirx.EQ: arithmetic.equal,
            tirx.NE: arithmetic.not_equal,
            tirx.LT: arithmetic.less,
            tirx.LE: arithmetic.less_equal,
            tirx.GT: lambda a, b: arithmetic.less(b, a),
            tirx.GE: lambda a, b: arithmetic.less_equal(b, a),
            tirx.BitwiseAnd: lambda a, b: arithmetic.bitwise(Op.BitwiseAnd, a, b),
            tirx.BitwiseOr: lambda a, b: arithmetic.bitwise(Op.BitwiseOr, a, b),
            tirx.BitwiseXor: lambda a, b: arithmetic.bitwise(Op.BitwiseXor, a, b),
            tirx.LShift: arithmetic.shift_left,
            tirx.RShift: arithmetic.shift_right,
        }
        self._others: dict[type, Callable[[Node], Value]] = {
            tirx.IntImm: self._immediate,
            tirx.FloatImm: self._immediate,
            tirx.Var: self._variable,
            tirx.Cast: self._cast,
            tirx.Select: self._select,
            tirx.Ramp: self._ramp,
            tirx.Broadcast: self._broadcast,
            tirx.Shuffle: self._shuffle,
            tirx.Let: self._let,
            tirx.Not: lambda node: arithmetic.negation(self.visit(node.a)),
            tirx.BitwiseNot: lambda node: arithmetic.invert(self.visit(node.a)),
            tirx.And: lambda node: self._logical(node, arithmetic.both, stop_at=False),
            tirx.Or: lambda node: self._logical(node, arithmetic.either, stop_at=True),
            TensorLoad: self._load,
            Call: self._call_value,
        }

    def visit(self, node: Node) -> Value:
        """Return the value of an expression.

        Raises
        ------
        FabricError
            If there is no code for it.
        """
        kind = type(node)
        binary = self._binary.get(kind)
        if binary is not None:
            return binary(self.visit(node.a), self.visit(node.b))
        other = self._others.get(kind)
        if other is None:
            raise self.context.refuse(f"the expression {kind.__name__}")
        return other(node)

    def _immediate(self, node: Node) -> Value:
        return self.arithmetic.constant(self.context.dtype(node), node.value)

    def _variable(self, node: Node) -> Value:
        key = identity(node)
        found = self.context.values.get(key)
        if found is not None:
            return found
        index = self.context.parameters.get(key)
        if index is None:
            raise self.context.refuse(f"the variable {node.name}, which nothing defines")
        return self.context.argument(index)

    def _cast(self, node: Node) -> Value:
        return self.context.conversions.cast(self.visit(node.value), self.context.dtype(node))

    def _select(self, node: Node) -> Value:
        condition, then = self.visit(node.condition), self.visit(node.true_value)
        return self.arithmetic.select(condition, then, self.visit(node.false_value))

    def _ramp(self, node: Node) -> Value:
        base, stride = self.visit(node.base), self.visit(node.stride)
        lanes = [base.id]
        for i in range(1, self.context.dtype(node).lanes):
            step = self.arithmetic.multiply(stride, self.arithmetic.constant(stride.dtype, i))
            lanes.append(self.arithmetic.add(base, step).id)
        return self.arithmetic.vector(base.dtype, lanes)

    def _broadcast(self, node: Node) -> Value:
        value = self.visit(node.value)
        lanes = self.context.dtype(node).lanes
        if value.dtype.lanes == 1:
            return self.arithmetic.broadcast(value, lanes)
        repeated = self.arithmetic.lanes(value) * (lanes // value.dtype.lanes)
        return self.arithmetic.vector(value.dtype.scalar, repeated)

    def _shuffle(self, node: Node) -> Value:
        vectors = [self.visit(vector) for vector in node.vectors]
        places = [int(index.value) for index in node.indices]
        if len(places) == 1 and len(vectors) == 1:
            return self.arithmetic.lane(vectors[0], places[0])
        lanes = [lane for vector in vectors for lane in self.arithmetic.lanes(vector)]
        return self.arithmetic.vector(vectors[0].dtype.scalar, [lanes[i] for i in places])

    def _let(self, node: Node) -> Value:
        self.context.values[identity(node.var)] = self.visit(node.value)
        return self.visit(node.body)

    def _call_value(self, node: Node) -> Value:
        value = self._call(node)
        if value is None:
            raise self.context.refuse(f"the value of {node.op}, which has none")
        return value

    # What must not be computed in vain

    def _logical(
        self, node: Node, combine: Callable[[Value, Value], Value], stop_at: bool
    ) -> Value:
        """Return a conjunction or disjunction; what reads memory is read only where it decides."""
        left = self.visit(node.a)
        if left.dtype.lanes > 1 or not _reads_memory(node.b):
            return combine(left, self.visit(node.b))
        decided = self.arithmetic.constant(left.dtype, stop_at)
        condition = self.arithmetic.negation(left) if stop_at else left
        return self.branches(condition, lambda: self.visit(node.b), lambda: decided)

    def if_then_else(self, condition: Node, then: Node, otherwise: Node) -> Value:
        """Return the value of one side, and compute no other."""
        test = self.visit(condition)
        if _is_plain(then) and _is_plain(otherwise):
            return self.arithmetic.select(test, self.visit(then), self.visit(otherwise))
        return self.branches(test, lambda: self.visit(then), lambda: self.visit(otherwise))

    def branches(
        self, condition: Value, then: Callable[[], Value], otherwise: Callable[[], Value]
    ) -> Value:
        """Return the value of the side that a scalar condition chooses, by a branch."""
        builder = self.builder
        labels = builder.new_id(), builder.new_id()
        merge = builder.new_id()
        builder.branch_if(condition.id, *labels, merge=merge)
        values, ends = [], []
        for label, side in zip(labels, (then, otherwise), strict=True):
            with builder.scope():
                builder.begin(label)
                values.append(side())
                ends.append(builder.block)
                builder.branch(merge)
        builder.begin(merge)
        dtype = values[0].dtype
        kind = self.types.register(dtype, part_lanes(dtype.lanes))
        pairs = zip(values[0].parts, values[1].parts, strict=True)
        parts = tuple(builder.phi(kind, *zip(pair, ends, strict=True)) for pair in pairs)
        return Value(dtype, parts)

    # Memory

    def view(self, buffer: Node) -> View:
        """Return the view of a buffer in sight."""
        found = self.context.views.get(identity(buffer))
        if found is None:
            raise self.context.refuse(f"the buffer {buffer.name}, which nothing declares")
        return found

    def place(self, view: View, index: Value) -> Value:
        """Return an element's number in the memory of a view."""
        return index if view.offset is None else self.arithmetic.add(view.offset, index)

    def _load(self, node: Node) -> Value:
        view, index = self.view(node.source), self._only_index(node.indices)
        places = self._places(view, index)
        if len(places) == 1:
            return view.memory.read(*places[0])
        lanes: list[int] = []
        for dtype, place in places:
            lanes += self.arithmetic.lanes(view.memory.read(dtype, place))
        return self.arithmetic.vector(view.dtype.scalar, lanes)

    def store(self, buffer: Node, value: Node, indices: Node) -> None:
        """Write an element, or a vector of elements."""
        view, stored = self.view(buffer), self.visit(value)
        places = self._places(view, self._only_index(indices))
        if len(places) == 1:
            view.memory.write(stored, places[0][1])
            return
        lanes = self.arithmetic.lanes(stored)
        for dtype, place in places:
            piece = self.arithmetic.vector(dtype.scalar, lanes[: dtype.lanes])
            del lanes[: dtype.lanes]
            view.memory.write(piece, place)

    def _only_index(self, indices: Node) -> Node:
        if len(indices) != 1:
            raise self.context.refuse(f"an access of {len(indices)} axes")
        return indices[0]

    def _places(self, view: View, index: Node) -> list[tuple[DType, Value]]:
        """Return the types and numbers of the elements that an index, or a vector of them, names.

        Adjacent ones that begin at a multiple of their number are one element of a vector type.
        """
        dtype, width = view.dtype, 1
        if isinstance(index, tirx.Ramp):
            lanes = self.context.dtype(index).lanes
            width = self._adjacent(view, index, lanes)
        if width > 1:
            base = self._analyzer.simplify(tirx.floordiv(index.base, width))
            first = self.visit(base)
            return [(dtype.of(width), self._offset(first, i)) for i in range(lanes // width)]
        numbers = self.visit(index)
        if numbers.dtype.lanes == 1:
            return [(dtype, self.place(view, numbers))]
        if dtype.lanes > 1:
            raise self.context.refuse(f"a vector of indices into elements of {dtype}")
        places = [Value(numbers.dtype.scalar, (i,)) for i in self.arithmetic.lanes(numbers)]
        return [(dtype, self.place(view, place)) for place in places]

    def _offset(self, first: Value, i: int) -> Value:
        return self.arithmetic.add(first, self.arithmetic.constant(first.dtype, i)) if i else first

    def _adjacent(self, view: View, index: Node, lanes: int) -> int:
        """Return how many of the elements of a vector of indices one access may move."""
        if view.offset is not None or view.dtype.lanes > 1:
            return 1
        if not isinstance(index.stride, tirx.IntImm) or index.stride.value != 1:
            return 1
        multiple = self._analyzer.modular_set(index.base)
        for width in (16, 8, 4, 2):
            fits = width * view.dtype.bits <= 8 * _WIDEST_ACCESS and lanes % width == 0
            if fits and multiple.coeff % width == 0 and multiple.base % width == 0:
                return width
        return 1


def _is_plain(node: Node) -> bool:
    if isinstance(node, tirx.Broadcast):
        node = node.value
    return isinstance(node, _PLAIN)


_CHILDREN = ("a", "b", "value", "base", "stride", "condition", "true_value", "false_value", "body")


def _reads_memory(node: Node) -> bool:
    """Tell whether an expression reads memory."""
    if isinstance(node, TensorLoad):
        return True
    if isinstance(node, Call):
        return any(_reads_memory(argument) for argument in node.args)
    if isinstance(node, tirx.Shuffle):
        return any(_reads_memory(vector) for vector in node.vectors)
    if isinstance(node, _PLAIN):
        return False
    children = (getattr(node, name, None) for name in _CHILDREN)
    return any(child is not None and _reads_memory(child) for child in children)
