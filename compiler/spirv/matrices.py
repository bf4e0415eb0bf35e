"""Cooperative matrices: small products that the threads of a subgroup compute together.

TVM's names for them are fragments, buffers of the scopes ``wmma.*``, and ``tvm_fill_fragment``,
``tvm_load_matrix_sync``, ``tvm_mma_sync``, ``tvm_store_matrix_sync``. They become
SPV_KHR_cooperative_matrix, which asks for Vulkan's memory model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import Call
from tvm.sym import Analyzer

from .context import Context, Node, identity
from .expressions import Expressions
from .grammar import (
    Capability,
    MatrixLayout,
    MatrixOperands,
    MatrixUse,
    MemoryAccess,
    Op,
    Scope,
    StorageClass,
)
from .interface import Access
from .memory import BufferMemory, View
from .values import DType, Value

USES = {
    "wmma.matrix_a": MatrixUse.MatrixA,
    "wmma.matrix_b": MatrixUse.MatrixB,
    "wmma.accumulator": MatrixUse.MatrixAccumulator,
}
"""The role of a fragment by the scope of its buffer."""
_LAYOUTS = {"row_major": MatrixLayout.RowMajor, "col_major": MatrixLayout.ColumnMajor}
_SIGNED = (
    MatrixOperands.MatrixASigned
    | MatrixOperands.MatrixBSigned
    | MatrixOperands.MatrixCSigned
    | MatrixOperands.MatrixResultSigned
)
_ROW_ALIGNMENT = 16
"""Bytes to which a matrix's rows in memory are aligned, as SPV_KHR_cooperative_matrix asks."""


@dataclass
class Fragments:
    """A buffer of fragments.

    Attributes
    ----------
    use : MatrixUse
        Their role.
    dtype : DType
        Of their elements.
    elements : int
        Of all of them.
    matrix : int
        The SPIR-V type of one; 0 until the first operation tells its shape.
    variable : int
        What holds them.
    count : int
        How many they are.
    """

    use: MatrixUse
    dtype: DType
    elements: int
    matrix: int = 0
    variable: int = 0
    count: int = 0


class Matrices:
    """Writes operations of cooperative matrices, and pointers.

    Parameters
    ----------
    context : Context
        The kernel's.
    expressions : Expressions
        Writes the operands.
    """

    def __init__(self, context: Context, expressions: Expressions) -> None:
        self.context, self.expressions = context, expressions
        self.builder, self.types = context.builder, context.types
        self._fragments: dict[int, Fragments] = {}
        self.table: dict[str, Callable[[Node], None]] = {
            "tirx.tvm_fill_fragment": self._fill,
            "tirx.tvm_load_matrix_sync": self._load,
            "tirx.tvm_mma_sync": self._multiply,
            "tirx.tvm_store_matrix_sync": self._store,
        }

    def declare(self, buffer: Node, scope: str, dtype: DType, elements: int) -> None:
        """Declare a buffer of fragments."""
        if not self.context.abilities.matrices:
            raise self.context.refuse("matrix units")
        self.builder.require(Capability.CooperativeMatrixKHR, "SPV_KHR_cooperative_matrix")
        self._fragments[identity(buffer)] = Fragments(USES[scope], dtype, elements)

    def _of(self, data: Node) -> Fragments:
        buffer = data.args[0] if isinstance(data, Call) else data
        found = self._fragments.get(identity(buffer))
        if found is None:
            raise self.context.refuse("a matrix that is no fragment")
        return found

    def _shaped(self, arguments: list[Node]) -> Fragments:
        """Return the fragments that an operation names, whose shape it tells."""
        fragments = self._of(arguments[0])
        if not fragments.matrix:
            m, n, k = (int(extent.value) for extent in arguments[1:4])
            rows, columns = {
                MatrixUse.MatrixA: (m, k),
                MatrixUse.MatrixB: (k, n),
                MatrixUse.MatrixAccumulator: (m, n),
            }[fragments.use]
            self._declare_type(fragments, rows, columns)
        return fragments

    def _declare_type(self, fragments: Fragments, rows: int, columns: int) -> None:
        words = [
            self.context.arithmetic.word(number)
            for number in (Scope.Subgroup, rows, columns, fragments.use)
        ]
        fragments.matrix = self.builder.declare_type(
            Op.TypeCooperativeMatrixKHR, self._component(fragments.dtype), *words
        )
        fragments.count = fragments.elements // (rows * columns)
        whole = fragments.matrix
        if fragments.count > 1:
            whole = self.types.array(whole, fragments.count)
        pointer = self.types.pointer(StorageClass.Function, whole)
        fragments.variable = self.builder.local_variable(pointer)

    def _component(self, dtype: DType) -> int:
        """Return the type of a matrix's elements, whose integers have a sign here."""
        if not dtype.is_integer:
            return self.types.register(dtype, 1)
        if dtype.bits == 8:
            self.builder.require(Capability.Int8)
        return self.builder.declare_type(Op.TypeInt, dtype.bits, dtype.kind == "int")

    def _slot(self, fragments: Fragments, index: Node) -> int:
        """Return the pointer to one fragment."""
        if fragments.count == 1:
            return fragments.variable
        pointer = self.types.pointer(StorageClass.Function, fragments.matrix)
        place = self.expressions.visit(index).id
        return self.builder.pure(Op.AccessChain, pointer, fragments.variable, place)

    def _fill(self, node: Node) -> None:
        arguments = list(node.args)
        fragments = self._shaped(arguments)
        number = self.expressions.visit(arguments[5])
        scalar = number.id
        if fragments.dtype.is_integer:
            component = self._component(fragments.dtype)
            scalar = self.builder.pure(Op.Bitcast, component, scalar)
        filled = self.builder.value(Op.CompositeConstruct, fragments.matrix, scalar)
        self.builder.effect(Op.Store, self._slot(fragments, arguments[4]), filled)

    def _load(self, node: Node) -> None:
        arguments = list(node.args)
        fragments = self._shaped(arguments)
        slot = self._slot(fragments, arguments[4])
        operands = self._in_memory(fragments, arguments, Access.READ)
        matrix = self.builder.value(Op.CooperativeMatrixLoadKHR, fragments.matrix, *operands)
        self.builder.effect(Op.Store, slot, matrix)

    def _store(self, node: Node) -> None:
        arguments = list(node.args)
        fragments = self._shaped(arguments)
        slot = self._slot(fragments, arguments[4])
        pointer, *operands = self._in_memory(fragments, arguments, Access.WRITE)
        matrix = self.builder.value(Op.Load, fragments.matrix, slot)
        self.builder.effect(Op.CooperativeMatrixStoreKHR, pointer, matrix, *operands)

    def _multiply(self, node: Node) -> None:
        arguments = list(node.args)
        named = list(zip(arguments[::2], arguments[1::2], strict=True))
        slots, matrices = [], []
        for data, index in named:
            fragments = self._of(data)
            slots.append(self._slot(fragments, index))
            matrices.append(fragments)
        values = [
            self.builder.value(Op.Load, fragments.matrix, slot)
            for fragments, slot in zip(matrices[1:], slots[1:], strict=True)
        ]
        signed = (_SIGNED,) if matrices[1].dtype.kind == "int" else ()
        result = self.builder.value(
            Op.CooperativeMatrixMulAddKHR, matrices[0].matrix, *values, *signed
        )
        self.builder.effect(Op.Store, slots[0], result)

    def _in_memory(
        self, fragments: Fragments, arguments: list[Node], access: Access
    ) -> tuple[int, ...]:
        """Return the operands that say where a matrix lies: pointer, layout, stride, access."""
        view, pointer = self._element(arguments[5], access)
        stride = self._stride(fragments.dtype, view.dtype, arguments[6])
        layout = _LAYOUTS[arguments[7].value]
        operands: tuple[int, ...] = (MemoryAccess.NonPrivatePointer,)
        if isinstance(view.memory, BufferMemory):
            operands = ()
            if self.context.abilities.addresses:
                operands = (MemoryAccess.Aligned, _ROW_ALIGNMENT)
        return pointer, self.context.arithmetic.word(layout), stride.id, *operands

    def _stride(self, dtype: DType, memory: DType, stride: Node) -> Value:
        """Return a stride in elements of the memory, from one in elements of the matrix."""
        bits = memory.bits * memory.lanes
        if bits == dtype.bits:
            return self.expressions.visit(stride)
        return self.expressions.visit(Analyzer().simplify(stride * dtype.bits // bits))

    # Pointers

    def pointer(self, node: Node, access: Access) -> int:
        """Return the pointer that ``address_of`` or ``tvm_access_ptr`` makes."""
        return self._element(node, access)[1]

    def _element(self, node: Node, access: Access) -> tuple[View, int]:
        name = node.op.name if isinstance(node, Call) else ""
        if name == "tirx.tvm_access_ptr":
            data, index = node.args[1], node.args[2]
            buffer = data.args[0] if isinstance(data, Call) else data
        elif name == "tirx.address_of":
            buffer, index = node.args[0].source, node.args[0].indices[0]
            if isinstance(index, tirx.Ramp):
                # TVM lowers an access to a buffer of vectors to one of their elements.
                view, lanes = self.expressions.view(buffer), int(index.lanes)
                whole = replace(view, dtype=view.dtype.of(lanes))
                vector = self.expressions.visit(Analyzer().simplify(index.base // lanes))
                place = self.expressions.place(whole, vector)
                return whole, whole.memory.pointer(whole.dtype, place, access)
        elif isinstance(node, tirx.Var) or name == "tirx.buffer_data":
            buffer, index = node.args[0] if name else node, tirx.const(0, "int32")
        else:
            raise self.context.refuse(f"the pointer {node}")
        view = self.expressions.view(buffer)
        place = self.expressions.place(view, self.expressions.visit(index))
        return view, view.memory.pointer(view.dtype, place, access)
