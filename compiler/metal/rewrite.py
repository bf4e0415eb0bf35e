"""Kernels in the words that TVM's generator of MSL knows: vectors, matrices, threads and functions.

- Memory. Our kernels read it through buffers whose elements are vectors. Before TVM writes MSL, it
  looks for accesses that could be of vectors, and takes a buffer of vectors over memory of scalars
  for a mistake. So such a buffer becomes one of scalars, and an access of an element a ramp of
  lanes: what is read stays one vector, as TVM finds out again.
- Products of small matrices become those of a SIMD group.
- A thread's place in its SIMD group follows from its place in the threadgroup: 32 neighbours are
  one, in the order of x, then y, then z.
- Functions get their names in MSL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.backend.metal.op import make_filled_simdgroup_matrix, simdgroup_multiply_accumulate

from ...targets.metal import SIMD
from .errors import failure
from .functions import known
from .limits import threads

Expr = Any
FRAGMENT = "wmma."
"""What the scopes of fragments of matrices begin with."""
MATRIX = "metal.simdgroup"
"""TVM's scope of a SIMD group's matrices."""


def rewritten(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a lowered kernel that TVM's generator of MSL takes.

    Parameters
    ----------
    function : tirx.PrimFunc
        A kernel whose accesses are of one axis.

    Raises
    ------
    MetalCodeError
        If it calls a function that MSL and ours have not.
    """
    rewriter = _Rewriter(function)
    return function.with_body(
        tvm_ffi.structural_mutate(
            function.body,
            [
                (tirx.AllocBuffer, rewriter.allocate),
                (tirx.DeclBuffer, rewriter.declare),
                (tvm.ir.Call, rewriter.call),
                (tvm.ir.TensorLoad, rewriter.load),
                (tirx.BufferStore, rewriter.store),
            ],
        )
    )


class _Rewriter:
    """Rewrites the statements and expressions of one kernel."""

    def __init__(self, function: tirx.PrimFunc) -> None:
        self._buffers: dict[Any, tirx.Buffer] = {}
        self._places = _places(function)
        self._calls: dict[str, Callable[[tvm.ir.Call, Any], Expr]] = {
            "tirx.buffer_data": self._data,
            "tirx.call_pure_extern": self._function,
            "tirx.call_extern": self._function,
            "tirx.tvm_fill_fragment": self._fill,
            "tirx.tvm_load_matrix_sync": self._load_matrix,
            "tirx.tvm_store_matrix_sync": self._store_matrix,
            "tirx.tvm_mma_sync": self._multiply,
        }

    # Memory

    def allocate(self, node: tirx.AllocBuffer, mutator: Any) -> Any:
        """Rewrite a buffer of a thread, a threadgroup or a SIMD group."""
        buffer = self._replaced(node.buffer)
        if buffer is None:
            return mutator.default_mutate(node)
        return tirx.AllocBuffer(buffer, dict(node.annotations))

    def declare(self, node: tirx.DeclBuffer, mutator: Any) -> Any:
        """Rewrite a buffer over another's memory."""
        buffer = self._replaced(node.buffer)
        if buffer is None:
            return mutator.default_mutate(node)
        return tirx.DeclBuffer(buffer, data=mutator.mutate(node.data))

    def _replaced(self, buffer: tirx.Buffer) -> tirx.Buffer | None:
        """Return what stands for a buffer from now on; None where it stays."""
        kind, scope = tvm.DataType(str(buffer.dtype)), buffer.scope()
        if kind.lanes == 1 and not scope.startswith(FRAGMENT):
            return None
        shape = [*buffer.shape[:-1], buffer.shape[-1] * kind.lanes]
        scope = MATRIX if scope.startswith(FRAGMENT) else scope
        new = tirx.decl_buffer(shape, str(kind.with_lanes(1)), buffer.name, scope=scope)
        self._buffers[buffer] = new
        return new

    def load(self, node: tvm.ir.TensorLoad, mutator: Any) -> Any:
        """Rewrite the reading of an element."""
        buffer = self._buffers.get(node.source)
        if buffer is None:
            return mutator.default_mutate(node)
        return tirx.BufferLoad(buffer, [self._ramp(node, str(node.source.dtype), mutator)])

    def store(self, node: tirx.BufferStore, mutator: Any) -> Any:
        """Rewrite the writing of an element."""
        buffer = self._buffers.get(node.buffer)
        if buffer is None:
            return mutator.default_mutate(node)
        value = mutator.mutate(node.value)
        return tirx.BufferStore(buffer, value, [self._ramp(node, str(node.buffer.dtype), mutator)])

    @staticmethod
    def _ramp(access: Any, dtype: str, mutator: Any) -> Expr:
        (index,) = (mutator.mutate(index) for index in access.indices)
        lanes = tvm.DataType(dtype).lanes
        return tirx.Ramp(index * lanes, tirx.const(1, "int32"), lanes)

    # Calls

    def call(self, node: tvm.ir.Call, mutator: Any) -> Any:
        """Rewrite a call."""
        write = self._calls.get(getattr(node.op, "name", ""))
        return write(node, mutator) if write else mutator.default_mutate(node)

    def _data(self, node: tvm.ir.Call, mutator: Any) -> Expr:
        buffer = self._buffers.get(node.args[0])
        return mutator.default_mutate(node) if buffer is None else buffer.data

    def _function(self, node: tvm.ir.Call, mutator: Any) -> Expr:
        name, *arguments = node.args
        if name.value in self._places:
            return self._places[name.value]
        new = known(str(name.value))
        if not new:
            raise failure(
                f"A kernel calls {name.value}, which neither Metal nor fabric has a function for.",
                "This is a fault of fabric's: report it, and use --target cpu until it is mended.",
            )
        arguments = [mutator.mutate(argument) for argument in arguments]
        return tirx.call_pure_extern(node.ty.dtype, new, *arguments)

    # Matrices

    def _fill(self, node: tvm.ir.Call, mutator: Any) -> Expr:
        data, *_, index, value = (mutator.mutate(argument) for argument in node.args)
        return make_filled_simdgroup_matrix(data, index, value)

    def _load_matrix(self, node: tvm.ir.Call, mutator: Any) -> Expr:
        *rest, order = node.args
        data, *_, index, place, stride = (mutator.mutate(argument) for argument in rest)
        transposed = tirx.const(order.value == "col_major", "bool")
        return tirx.call_extern(
            "void", "fabric_load_matrix", data, index, place, stride, transposed
        )

    def _store_matrix(self, node: tvm.ir.Call, mutator: Any) -> Expr:
        data, *_, index, place, stride = (mutator.mutate(a) for a in node.args[:-1])
        return tirx.call_extern("void", "fabric_store_matrix", data, index, place, stride)

    def _multiply(self, node: tvm.ir.Call, mutator: Any) -> Expr:
        return simdgroup_multiply_accumulate(*(mutator.mutate(a) for a in node.args))


def _places(function: tirx.PrimFunc) -> dict[str, Expr]:
    """Return the functions of a thread's place in its SIMD group, computed."""
    found = threads(function)
    place: Expr = tirx.const(0, "int32")
    for axis in "zyx":
        if f"threadIdx.{axis}" in found:
            variable, extent = found[f"threadIdx.{axis}"]
            place = place * extent + tirx.Cast("int32", variable)
    count = math.prod(extent for _, extent in found.values())
    return {
        "fabric_subgroup_size": tirx.const(SIMD, "int32"),
        "fabric_subgroup_lane": place & (SIMD - 1),
        "fabric_subgroup_id": place >> (SIMD.bit_length() - 1),
        "fabric_subgroup_count": tirx.const(-(-count // SIMD), "int32"),
    }
