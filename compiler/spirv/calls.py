"""TIR's calls: what they are named, and who writes them."""

from __future__ import annotations

import re
from collections.abc import Callable

import tvm

from .context import Context, Node
from .expressions import Expressions
from .grammar import Capability, Glsl, MemorySemantics, Op, PackedVectorFormat, Scope
from .interface import Access
from .math_functions import MathFunctions
from .matrices import Matrices
from .subgroups import SHUFFLES, Subgroups
from .types import WORD
from .values import INT32, DType, Value

DOT = "fabric_dot4"
_EXTERNS = {"tirx.call_pure_extern", "tirx.call_extern"}
_OPENCL_NAMES = {"char": 8, "short": 16, "int": 32, "long": 64, "half": 16, "float": 32}
_TYPE = rf"u?(?:{'|'.join(_OPENCL_NAMES)})\d*"
_AS = re.compile(rf"as_{_TYPE}")
_CONSTRUCTOR = re.compile(rf"\({_TYPE}\)")
_SATURATE = re.compile(rf"convert_{_TYPE}_sat_rte")
_BARRIERS = {
    "shared": Scope.Workgroup,
    "shared.dyn": Scope.Workgroup,
    "warp": Scope.Subgroup,
}
_BYTES = (0, 8, 16, 24)


class Calls:
    """Writes calls.

    Names without a prefix are those of C's mathematics, with or without its ``f``, and OpenCL C's
    for what TIR has no other word for: constructors of vectors ``(float4)``, reinterpretations
    ``as_int``, rounding to integers ``convert_char4_sat_rte``.

    Parameters
    ----------
    context : Context
        The kernel's.
    """

    def __init__(self, context: Context) -> None:
        self.context, self.arithmetic = context, context.arithmetic
        self.expressions = Expressions(context, self.visit)
        self.math = MathFunctions(context)
        self.subgroups = Subgroups(context)
        self.matrices = Matrices(context, self.expressions)
        self._table: dict[str, Callable[[Node], Value | None]] = {
            "prim.if_then_else": lambda node: self.expressions.if_then_else(*node.args),
            "prim.likely": lambda node: self.expressions.visit(node.args[0]),
            "tirx.reinterpret": self._reinterpret,
            "tirx.tvm_storage_sync": self._barrier,
            "tirx.dp4a": lambda node: self.dot(*self._values(node.args)),
            "tirx.atomic_add": self._atomic_add,
            "tirx.tvm_warp_activemask": lambda node: context.conversions.cast(
                self.subgroups.active(), context.dtype(node)
            ),
            **self.matrices.table,
        }

    def visit(self, node: Node) -> Value | None:
        """Write a call; returns its value, None where it has none.

        Raises
        ------
        FabricError
            If there is no code for it.
        """
        if not isinstance(node.op, tvm.ir.Op):
            raise self.context.refuse(f"a call of {node.op}")
        name = node.op.name
        if name in _EXTERNS:
            return self._extern(node, node.args[0].value, list(node.args)[1:])
        known = self._table.get(name)
        if known is not None:
            return known(node)
        short = name.rpartition(".")[2]
        if self.math.knows(short):
            return self._math(node, short, node.args)
        if short in SHUFFLES:
            _, value, place, width, threads = node.args
            mine, other = self._values([value, place])
            return self.subgroups.shuffle(short, mine, other, int(width.value), int(threads.value))
        raise self.context.refuse(f"the operator {name}")

    def _values(self, nodes: Node) -> list[Value]:
        return [self.expressions.visit(node) for node in nodes]

    def _extern(self, node: Node, name: str, arguments: list[Node]) -> Value:
        plain = name.removesuffix("f")
        if name == DOT:
            return self.dot(*self._values(arguments))
        if self.subgroups.knows(name):
            return self.subgroups.call(name, self._values(arguments))
        if self.math.knows(name):
            return self._math(node, name, arguments)
        if self.math.knows(plain):
            return self._math(node, plain, arguments)
        dtype = self.context.dtype(node)
        if _CONSTRUCTOR.fullmatch(name):
            lanes = [lane for v in self._values(arguments) for lane in self.arithmetic.lanes(v)]
            return self.arithmetic.vector(dtype.scalar, lanes * (dtype.lanes // len(lanes)))
        if _AS.fullmatch(name):
            return self._as(self.expressions.visit(arguments[0]), dtype)
        if _SATURATE.fullmatch(name) and dtype.bits < WORD:
            return self._saturate(self.expressions.visit(arguments[0]), dtype)
        raise self.context.refuse(f"the function {name}")

    def _math(self, node: Node, name: str, arguments: Node) -> Value:
        result = self.math.call(name, self._values(arguments))
        return self.context.conversions.cast(result, self.context.dtype(node))

    def _reinterpret(self, node: Node) -> Value:
        return self._as(self.expressions.visit(node.args[0]), self.context.dtype(node))

    def _as(self, value: Value, dtype: DType) -> Value:
        result = self.context.conversions.bits.reinterpret(value, dtype)
        if result is None:
            raise self.context.refuse(f"the bits of {value.dtype} as {dtype}")
        return result

    def _saturate(self, value: Value, dtype: DType) -> Value:
        """Return floats as the nearest narrow integers, half to even, at most the type's ends."""
        sums = self.arithmetic
        least, most = -(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1
        if dtype.kind == "uint":
            least, most = 0, (1 << dtype.bits) - 1
        bounds = [sums.constant(value.dtype, bound) for bound in (least, most)]
        inside = sums.glsl(Glsl.FClamp, sums.glsl(Glsl.RoundEven, value), *bounds)
        return Value(dtype, self.context.conversions.cast(inside, INT32.of(dtype.lanes)).parts)

    def dot(self, left: Value, right: Value, total: Value) -> Value:
        """Return `total` plus the four products of the signed bytes of two words."""
        builder, word = self.context.builder, self.context.types.word
        if self.context.abilities.dot:
            builder.require(Capability.DotProduct, "SPV_KHR_integer_dot_product")
            builder.require(Capability.DotProductInput4x8BitPacked)
            form = PackedVectorFormat.Format4x8Bit
            product = builder.pure(Op.SDot, word, left.id, right.id, form)
            return self.arithmetic.add(total, Value(INT32, (product,)))
        sums = self.arithmetic
        for place in _BYTES:
            a, b = (sums.bits(Op.BitFieldSExtract, side, place, 8) for side in (left, right))
            total = sums.add(total, sums.multiply(a, b))
        return total

    def _barrier(self, node: Node) -> None:
        scope = _BARRIERS.get(node.args[0].value)
        if scope is None:
            raise self.context.refuse(f"a barrier over {node.args[0].value} memory")
        order = MemorySemantics.AcquireRelease | MemorySemantics.WorkgroupMemory
        if self.context.coherent:
            order |= MemorySemantics.MakeAvailable | MemorySemantics.MakeVisible
        word = self.arithmetic.word
        self.context.builder.effect(Op.ControlBarrier, word(scope), word(scope), word(order))

    def _atomic_add(self, node: Node) -> Value:
        """Add to a 32-bit integer in memory; returns what was there before."""
        pointer, addend = node.args[0], self.expressions.visit(node.args[1])
        if not addend.dtype.is_integer or addend.dtype.bits != WORD:
            raise self.context.refuse(f"an atomic addition of {addend.dtype}")
        place = self.matrices.pointer(pointer, Access.READ | Access.WRITE)
        word, types = self.arithmetic.word, self.context.types
        # In Vulkan's memory model the whole device's scope would be a feature of its own.
        scope = Scope.QueueFamily if self.context.coherent else Scope.Device
        result = self.context.builder.value(
            Op.AtomicIAdd, types.word, place, word(scope), word(0), addend.id
        )
        return Value(addend.dtype, (result,))
