"""Memory of a work-group is allocated as scalars, and what sees it as vectors accesses runs.

TVM's generator for LLVM makes a view's address one of global memory, whatever it is a view of, so a
view of shared memory would read at a place that is not its own. Views of global memory stay.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from .kernels import Handlers, Node, rewritten

GLOBAL = ("", "global")


def lower_views(module: tvm.IRModule) -> tvm.IRModule:
    """Return kernels without views of other memory than global."""
    return rewritten(module, _handlers)


def _handlers(function: tirx.PrimFunc) -> Handlers:
    viewed: set[Node] = set()

    def note(node: tirx.DeclBuffer) -> None:
        if node.buffer.scope() not in GLOBAL:
            viewed.add(node.data.args[0])

    tvm_ffi.structural_walk(function.body, (tirx.DeclBuffer, note))
    scalars = _Scalars(viewed)
    return [
        (tirx.AllocBuffer, scalars.allocate),
        (tirx.DeclBuffer, scalars.declare),
        (tirx.BufferStore, scalars.store),
        (tvm.ir.TensorLoad, scalars.load),
    ]


class _Scalars:
    """Rewrites one kernel.

    Parameters
    ----------
    viewed : set of Buffer
        What the views are of.
    """

    def __init__(self, viewed: set[Node]) -> None:
        self._viewed = viewed
        self._scalars: dict[Node, Node] = {}

    def allocate(self, node: tirx.AllocBuffer, mutator: Any) -> Node:
        """Return the allocation of as many scalars."""
        buffer = node.buffer
        kind = tvm.DataType(str(buffer.dtype))
        if buffer not in self._viewed:
            return mutator.default_mutate(node)
        (extent,) = buffer.shape
        scalar = tirx.decl_buffer(
            [int(extent) * kind.lanes], str(kind.with_lanes(1)), buffer.name, scope=buffer.scope()
        )
        self._scalars[buffer] = scalar
        return tirx.AllocBuffer(scalar, dict(node.annotations))

    def declare(self, node: tirx.DeclBuffer, mutator: Any) -> Node:
        """Return nothing in the place of a view that this makes needless."""
        scalar = self._scalars.get(node.data.args[0]) if hasattr(node.data, "args") else None
        if scalar is None:
            return mutator.default_mutate(node)
        own = str(tvm.DataType(str(node.buffer.dtype)).with_lanes(1))
        assert own == str(scalar.dtype), f"{scalar.dtype} seen as {own}"
        self._scalars[node.buffer] = scalar
        return tirx.Evaluate(0)

    def load(self, node: tvm.ir.TensorLoad, mutator: Any) -> Node:
        """Return the load of a run of scalars."""
        scalar = self._scalars.get(node.source)
        if scalar is None:
            return mutator.default_mutate(node)
        return tirx.BufferLoad(scalar, [self._run(node.source, node.indices, mutator)])

    def store(self, node: tirx.BufferStore, mutator: Any) -> Node:
        """Return the store of a run of scalars."""
        scalar = self._scalars.get(node.buffer)
        if scalar is None:
            return mutator.default_mutate(node)
        index = self._run(node.buffer, node.indices, mutator)
        return tirx.BufferStore(scalar, mutator.mutate(node.value), [index])

    @staticmethod
    def _run(buffer: Node, indices: Any, mutator: Any) -> Node:
        (index,) = indices
        index, lanes = mutator.mutate(index), tvm.DataType(str(buffer.dtype)).lanes
        return index if lanes == 1 else tirx.Ramp(index * lanes, tirx.const(1, "int32"), lanes)
