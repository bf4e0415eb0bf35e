"""Arithmetic on values of a kernel, lane by lane, with the semantics of TIR.

Integers wrap around. Comparisons with NaN are false, but for "not equal". Divisions of integers
truncate; the others of TIR are made of them.

Sums and products of floats are left to the driver to contract: a program's parity with other
devices is within tolerances, and one driver compiles a module one way. What must not be contracted
asks for it (see `math_functions`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from .builder import Builder
from .grammar import Glsl, Op
from .types import WORD, Types
from .values import BOOL, FLOAT32, INT32, UINT32, DType, Value, part_lanes

_ADD = {True: Op.IAdd, False: Op.FAdd}
_SUBTRACT = {True: Op.ISub, False: Op.FSub}
_MULTIPLY = {True: Op.IMul, False: Op.FMul}
_DIVIDE = {"int": Op.SDiv, "uint": Op.UDiv}
_MIN = {"int": Glsl.SMin, "uint": Glsl.UMin}
_MAX = {"int": Glsl.SMax, "uint": Glsl.UMax}
_LESS = {"int": Op.SLessThan, "uint": Op.ULessThan}
_LESS_EQUAL = {"int": Op.SLessThanEqual, "uint": Op.ULessThanEqual}
_EQUAL = {"int": Op.IEqual, "uint": Op.IEqual, "bool": Op.LogicalEqual}
_NOT_EQUAL = {"int": Op.INotEqual, "uint": Op.INotEqual, "bool": Op.LogicalNotEqual}
_FORMS = {16: "<e", 32: "<f", 64: "<d"}


class Arithmetic:
    """Writes arithmetic into a module.

    Parameters
    ----------
    builder : Builder
        Where to.
    types : Types
        The module's types.
    """

    def __init__(self, builder: Builder, types: Types) -> None:
        self.builder, self.types = builder, types
        self._constants: dict[tuple[DType, float | str], Value] = {}
        self._constant_ids: set[int] = set()

    # Making values

    def constant(self, dtype: DType, number: float) -> Value:
        """Return a number in every lane."""
        # 0.0 and -0.0 are one key to a dict, but two constants.
        key = dtype, number if number else float(number).hex()
        found = self._constants.get(key)
        if found is None:
            scalar = self._scalar_constant(self.types.held(dtype.scalar), number)
            self._constant_ids.add(scalar)
            found = self.broadcast(Value(dtype.scalar, (scalar,)), dtype.lanes)
            self._constants[key] = found
        return found

    def _scalar_constant(self, held: DType, number: float) -> int:
        dtype = self.types.register(held, 1)
        if held.kind == "bool":
            return self.builder.declare_constant(
                Op.ConstantTrue if number else Op.ConstantFalse, dtype
            )
        if held.is_integer:
            bits = int(number) & ((1 << held.bits) - 1)
        else:
            bits = int.from_bytes(struct.pack(_FORMS[held.bits], number), "little")
        words = [bits >> shift & 0xFFFFFFFF for shift in range(0, held.bits, WORD)]
        return self.builder.declare_constant(Op.Constant, dtype, *words)

    def broadcast(self, value: Value, lanes: int) -> Value:
        """Return a scalar in every lane."""
        if lanes == 1:
            return value
        width = part_lanes(lanes)
        part = self._construct(value.dtype, (value.id,) * width)
        return Value(value.dtype.of(lanes), (part,) * (lanes // width))

    def lanes(self, value: Value) -> list[int]:
        """Return the ids of all lanes."""
        dtype, parts = value
        width = part_lanes(dtype.lanes)
        if width == 1:
            return list(parts)
        scalar = self.types.register(dtype, 1)
        extract = self.builder.pure
        return [
            extract(Op.CompositeExtract, scalar, part, i) for part in parts for i in range(width)
        ]

    def lane(self, value: Value, index: int) -> Value:
        """Return one lane."""
        dtype, parts = value
        if dtype.lanes == 1:
            return value
        width = part_lanes(dtype.lanes)
        part = parts[index // width]
        if width > 1:
            scalar = self.types.register(dtype, 1)
            part = self.builder.pure(Op.CompositeExtract, scalar, part, index % width)
        return Value(dtype.scalar, (part,))

    def vector(self, dtype: DType, lanes: Sequence[int]) -> Value:
        """Return scalars of a type as a vector."""
        width = part_lanes(len(lanes))
        parts = tuple(
            self._construct(dtype, tuple(lanes[i : i + width])) for i in range(0, len(lanes), width)
        )
        return Value(dtype.of(len(lanes)), parts)

    def _construct(self, dtype: DType, lanes: tuple[int, ...]) -> int:
        if len(lanes) == 1:
            return lanes[0]
        return self._construct_of(self.types.register(dtype.scalar, len(lanes)), lanes)

    def _construct_of(self, kind: int, lanes: tuple[int, ...]) -> int:
        if self._constant_ids.issuperset(lanes):
            made = self.builder.declare_constant(Op.ConstantComposite, kind, *lanes)
            self._constant_ids.add(made)
            return made
        return self.builder.pure(Op.CompositeConstruct, kind, *lanes)

    def index(self, value: Value) -> Value:
        """Return an element's number as an instruction that addresses memory takes it."""
        return value

    # Instructions on every lane

    def apply(self, op: Op, dtype: DType, *values: Value) -> Value:
        """Return the result of type `dtype` of an instruction on values of as many lanes."""
        pure, kind = self.builder.pure, self.types.register(dtype, part_lanes(dtype.lanes))
        if len(values[0].parts) == 1:
            return Value(dtype, (pure(op, kind, *[value.parts[0] for value in values]),))
        parts = zip(*[value.parts for value in values], strict=True)
        return Value(dtype, tuple([pure(op, kind, *part) for part in parts]))

    def glsl(self, instruction: Glsl, *values: Value) -> Value:
        """Return the result of a mathematical function, of the first value's type."""
        dtype = values[0].dtype
        kind = self.types.register(dtype, part_lanes(dtype.lanes))
        parts = zip(*[value.parts for value in values], strict=True)
        made = tuple([self.builder.glsl(instruction, kind, *part) for part in parts])
        return Value(dtype, made)

    def wrap(self, value: Value) -> Value:
        """Return an integer of up to 32 bits whose word may be out of its type's range."""
        dtype = value.dtype
        if not dtype.is_integer or dtype.bits >= WORD:
            return value
        op = Op.BitFieldSExtract if dtype.kind == "int" else Op.BitFieldUExtract
        return self.bits(op, value, 0, dtype.bits)

    def bits(self, op: Op, value: Value, offset: int, count: int) -> Value:
        """Return some bits of each word, extended to a word."""
        dtype = value.dtype
        kind = self.types.register(dtype, part_lanes(dtype.lanes))
        field = [self.constant(INT32, number).id for number in (offset, count)]
        return Value(dtype, tuple(self.builder.pure(op, kind, p, *field) for p in value.parts))

    # TIR's operators

    def add(self, a: Value, b: Value) -> Value:
        """Return the sum."""
        return self.wrap(self.apply(_ADD[a.dtype.is_integer], a.dtype, a, b))

    def subtract(self, a: Value, b: Value) -> Value:
        """Return the difference."""
        return self.wrap(self.apply(_SUBTRACT[a.dtype.is_integer], a.dtype, a, b))

    def multiply(self, a: Value, b: Value) -> Value:
        """Return the product."""
        return self.wrap(self.apply(_MULTIPLY[a.dtype.is_integer], a.dtype, a, b))

    def divide(self, a: Value, b: Value) -> Value:
        """Return the quotient; an integer's is truncated."""
        return self.wrap(self.apply(_DIVIDE.get(a.dtype.kind, Op.FDiv), a.dtype, a, b))

    def remainder(self, a: Value, b: Value) -> Value:
        """Return what the truncated quotient leaves: it has the sign of `a`."""
        if a.dtype.kind == "uint":
            return self.apply(Op.UMod, a.dtype, a, b)
        if a.dtype.is_float:
            return self.apply(Op.FRem, a.dtype, a, b)
        # Vulkan leaves SRem of negative numbers undefined.
        return self.subtract(a, self.multiply(self.divide(a, b), b))

    def floor_divide(self, a: Value, b: Value) -> Value:
        """Return the quotient of integers rounded down."""
        if a.dtype.kind == "uint":
            return self.divide(a, b)
        one = self.constant(a.dtype, 1)
        quotient = self.divide(a, b)
        return self.select(self._rounds_up(a, b), self.subtract(quotient, one), quotient)

    def floor_remainder(self, a: Value, b: Value) -> Value:
        """Return what the quotient that is rounded down leaves: it has the sign of `b`."""
        if a.dtype.kind == "uint":
            return self.remainder(a, b)
        rest = self.remainder(a, b)
        return self.select(self._rounds_up(a, b), self.add(rest, b), rest)

    def _rounds_up(self, a: Value, b: Value) -> Value:
        """Tell whether truncation rounds up: there is a rest, and its sign is not `b`'s."""
        rest, zero = self.remainder(a, b), self.constant(a.dtype, 0)
        differs = self.less(self.apply(Op.BitwiseXor, a.dtype, rest, b), zero)
        there = self.not_equal(rest, zero)
        return self.apply(Op.LogicalAnd, there.dtype, there, differs)

    def minimum(self, a: Value, b: Value) -> Value:
        """Return the smaller one."""
        return self.glsl(_MIN.get(a.dtype.kind, Glsl.FMin), a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        """Return the larger one."""
        return self.glsl(_MAX.get(a.dtype.kind, Glsl.FMax), a, b)

    def negate(self, a: Value) -> Value:
        """Return the negative."""
        if a.dtype.is_float:
            return self.apply(Op.FNegate, a.dtype, a)
        return self.wrap(self.apply(Op.SNegate, a.dtype, a))

    def absolute(self, a: Value) -> Value:
        """Return the magnitude."""
        if a.dtype.kind == "uint":
            return a
        return self.wrap(self.glsl(Glsl.FAbs if a.dtype.is_float else Glsl.SAbs, a))

    def less(self, a: Value, b: Value) -> Value:
        """Tell whether ``a < b``."""
        return self._compare(_LESS.get(a.dtype.kind, Op.FOrdLessThan), a, b)

    def less_equal(self, a: Value, b: Value) -> Value:
        """Tell whether ``a <= b``."""
        return self._compare(_LESS_EQUAL.get(a.dtype.kind, Op.FOrdLessThanEqual), a, b)

    def equal(self, a: Value, b: Value) -> Value:
        """Tell whether ``a == b``."""
        return self._compare(_EQUAL.get(a.dtype.kind, Op.FOrdEqual), a, b)

    def not_equal(self, a: Value, b: Value) -> Value:
        """Tell whether ``a != b``."""
        return self._compare(_NOT_EQUAL.get(a.dtype.kind, Op.FUnordNotEqual), a, b)

    def _compare(self, op: Op, a: Value, b: Value) -> Value:
        return self.apply(op, BOOL.of(a.dtype.lanes), a, b)

    def both(self, a: Value, b: Value) -> Value:
        """Return the conjunction of conditions."""
        return self.apply(Op.LogicalAnd, a.dtype, a, b)

    def either(self, a: Value, b: Value) -> Value:
        """Return the disjunction of conditions."""
        return self.apply(Op.LogicalOr, a.dtype, a, b)

    def negation(self, a: Value) -> Value:
        """Return a condition's negation."""
        return self.apply(Op.LogicalNot, a.dtype, a)

    def bitwise(self, op: Op, a: Value, b: Value) -> Value:
        """Return the and, or, exclusive or of the bits; extended words stay extended."""
        return self.apply(op, a.dtype, a, b)

    def invert(self, a: Value) -> Value:
        """Return the complement of the bits."""
        return self.wrap(self.apply(Op.Not, a.dtype, a))

    def shift_left(self, a: Value, b: Value) -> Value:
        """Return ``a << b``."""
        return self.wrap(self.apply(Op.ShiftLeftLogical, a.dtype, a, b))

    def shift_right(self, a: Value, b: Value) -> Value:
        """Return ``a >> b``, which keeps the sign of what has one."""
        signed = a.dtype.kind == "int"
        op = Op.ShiftRightArithmetic if signed else Op.ShiftRightLogical
        return self.apply(op, a.dtype, a, b)

    def select(self, condition: Value, then: Value, otherwise: Value) -> Value:
        """Return `then` where the condition holds, a scalar one for all lanes."""
        if condition.dtype.lanes != then.dtype.lanes:
            condition = self.broadcast(condition, then.dtype.lanes)
        return self.apply(Op.Select, then.dtype, condition, then, otherwise)

    def word(self, number: int) -> int:
        """Return the id of a 32-bit constant."""
        return self.constant(UINT32, number).id

    def float32(self, number: float) -> Value:
        """Return a float32 constant."""
        return self.constant(FLOAT32, number)
