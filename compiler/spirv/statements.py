"""TIR's statements as blocks of instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Call

from .arrays import ArrayMemory
from .calls import Calls
from .context import Context, Node, identity
from .grammar import Op, StorageClass
from .matrices import USES
from .memory import View
from .values import BOOL, DType, Value, parse

_AXES = {"x": 0, "y": 1, "z": 2}
_SHARED = {"shared", "shared.dyn"}
_LOCAL = {"", "local", "global"}
_HINTS = ("pragma_", "fragment_", "reduce_scope", "storage_alignment")
"""Attributes that ask for nothing that changes the result."""


@dataclass
class _Loop:
    """Where the innermost loop goes on, and where it ends."""

    proceed: int
    merge: int


class Statements:
    """Writes statements.

    Parameters
    ----------
    context : Context
        The kernel's.
    """

    def __init__(self, context: Context) -> None:
        self.context, self.builder, self.types = context, context.builder, context.types
        self.arithmetic, self.calls = context.arithmetic, Calls(context)
        self.expressions = self.calls.expressions
        self._loops: list[_Loop] = []
        self._table: dict[type, Callable[[Node], None]] = {
            tirx.SeqStmt: self._sequence,
            tirx.Bind: self._bind,
            tirx.BufferStore: self._buffer_store,
            tirx.DeclBuffer: self._declare,
            tirx.AllocBuffer: self._allocate,
            tirx.AttrStmt: self._attribute,
            tirx.IfThenElse: self._if,
            tirx.For: self._for,
            tirx.While: self._while,
            tirx.Evaluate: self._evaluate,
            tirx.Break: lambda node: self._jump("merge"),
            tirx.Continue: lambda node: self._jump("proceed"),
        }
        self._jumps: dict[str, Callable[[], None]] = {
            "tirx.break_loop": lambda: self._jump("merge"),
            "tirx.continue_loop": lambda: self._jump("proceed"),
            "tirx.thread_return": self.builder.leave,
        }

    def visit(self, node: Node) -> None:
        """Write a statement.

        Raises
        ------
        FabricError
            If there is no code for it.
        """
        # What stands after a jump is never reached.
        if not self.builder.open:
            return
        write = self._table.get(type(node))
        if write is None:
            raise self.context.refuse(f"the statement {type(node).__name__}")
        write(node)

    def _sequence(self, node: Node) -> None:
        for statement in node.seq:
            self.visit(statement)

    def _bind(self, node: Node) -> None:
        self.context.values[identity(node.var)] = self.expressions.visit(node.value)

    def _buffer_store(self, node: Node) -> None:
        self.expressions.store(node.buffer, node.value, node.indices)

    def _evaluate(self, node: Node) -> None:
        value = node.value
        if not isinstance(value, Call):
            return
        jump = self._jumps.get(getattr(value.op, "name", ""))
        if jump is not None:
            jump()
        else:
            self.calls.visit(value)

    # Buffers

    def _dtype(self, buffer: Node) -> DType:
        dtype = parse(str(buffer.ty.dtype.dtype))
        if dtype is None:
            raise self.context.refuse(f"a buffer of {buffer.ty.dtype}")
        return dtype

    def _declare(self, node: Node) -> None:
        """Let a buffer be a view of the memory behind a pointer."""
        data = node.data.args[0] if isinstance(node.data, Call) else node.data
        memory = self.expressions.view(data).memory
        offset, dtype = node.buffer.ty.elem_offset, self._dtype(node.buffer)
        first = None
        if not (isinstance(offset, tirx.IntImm) and offset.value == 0):
            first = self.expressions.visit(offset)
        self.context.views[identity(node.buffer)] = View(memory, dtype, first)

    def _allocate(self, node: Node) -> None:
        buffer = node.buffer
        scope, dtype = str(buffer.ty.storage_scope), self._dtype(buffer)
        count = 1
        for extent in buffer.ty.shape:
            if not isinstance(extent, tirx.IntImm):
                raise self.context.refuse(f"an array {buffer.name} of {extent} elements")
            count *= extent.value
        if scope in USES:
            self.calls.matrices.declare(buffer, scope, dtype, count * dtype.lanes)
            return
        if scope not in _SHARED | _LOCAL:
            raise self.context.refuse(f"memory of the scope {scope}")
        storage = StorageClass.Workgroup if scope in _SHARED else StorageClass.Function
        coherent = self.context.coherent and storage == StorageClass.Workgroup
        memory = ArrayMemory(
            self.context.conversions, storage, dtype, count, coherent, self.context.refuse
        )
        if storage == StorageClass.Workgroup:
            self.context.shared_bytes += memory.bytes
        self.context.views[identity(buffer)] = View(memory, dtype)

    # Where a thread is

    def _attribute(self, node: Node) -> None:
        if node.attr_key == "thread_extent":
            self._bind_index(node.node.var, node.node.thread_tag)
        elif not node.attr_key.startswith(_HINTS):
            raise self.context.refuse(f"the attribute {node.attr_key}")
        self.visit(node.body)

    def _bind_index(self, variable: Node, tag: str) -> None:
        prefix, _, axis = tag.partition(".")
        launch = self.context.launch
        read = {"blockIdx": launch.group, "threadIdx": launch.thread}.get(prefix)
        if read is None or axis not in _AXES:
            raise self.context.refuse(f"the thread axis {tag}")
        index = Value(DType("uint", 32), (read(_AXES[axis]),))
        self.context.values[identity(variable)] = self.context.conversions.cast(
            index, self.context.dtype(variable)
        )

    # Control flow

    def _if(self, node: Node) -> None:
        builder = self.builder
        condition = self.expressions.visit(node.condition).id
        then, merge = builder.new_id(), builder.new_id()
        otherwise = merge if node.else_case is None else builder.new_id()
        builder.branch_if(condition, then, otherwise, merge)
        self._block(then, node.then_case, merge)
        if node.else_case is not None:
            self._block(otherwise, node.else_case, merge)
        builder.begin(merge)

    def _block(self, label: int, body: Node, after: int) -> None:
        with self.builder.scope():
            self.builder.begin(label)
            self.visit(body)
            self.builder.branch(after)

    def _for(self, node: Node) -> None:
        if node.kind not in (tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED):
            raise self.context.refuse(f"a loop of the kind {tirx.ForKind(node.kind).name}")
        first = self.expressions.visit(node.min)
        end = self.arithmetic.add(first, self.expressions.visit(node.extent))
        step = self.arithmetic.constant(first.dtype, 1)
        if node.step is not None:
            step = self.expressions.visit(node.step)
        builder, start = self.builder, self.builder.block
        head, loop = builder.new_id(), _Loop(builder.new_id(), builder.new_id())
        following = builder.new_id()
        kind = self.types.register(first.dtype, 1)
        builder.branch(head)
        with builder.scope():
            builder.begin(head)
            index = builder.phi(kind, (first.id, start), (following, loop.proceed))
            value = Value(first.dtype, (index,))
            self.context.values[identity(node.loop_var)] = value
            unroll = node.kind == tirx.ForKind.UNROLLED
            self._turns(loop, unroll, lambda: self.arithmetic.less(value, end), node.body)
            # The loop's head has the number of this value already.
            builder.define(Op.CopyObject, kind, following, self.arithmetic.add(value, step).id)
            builder.branch(head)
        builder.begin(loop.merge)

    def _while(self, node: Node) -> None:
        builder = self.builder
        head, loop = builder.new_id(), _Loop(builder.new_id(), builder.new_id())
        builder.branch(head)
        with builder.scope():
            builder.begin(head)
            self._turns(loop, False, lambda: self.expressions.visit(node.condition), node.body)
            builder.branch(head)
        builder.begin(loop.merge)

    def _turns(self, loop: _Loop, unroll: bool, test: Callable[[], Value], body: Node) -> None:
        """Write a loop's test and body, up to the beginning of the block that repeats it."""
        builder, testing, inside = self.builder, self.builder.new_id(), self.builder.new_id()
        builder.loop(loop.merge, loop.proceed, unroll)
        builder.branch(testing)
        builder.begin(testing)
        condition = self.context.conversions.cast(test(), BOOL)
        builder.effect(Op.BranchConditional, condition.id, inside, loop.merge)
        self._loops.append(loop)
        self._block(inside, body, loop.proceed)
        self._loops.pop()
        builder.begin(loop.proceed)

    def _jump(self, where: str) -> None:
        """Leave the innermost loop, or go on with its next turn."""
        self.builder.branch(getattr(self._loops[-1], where))
