"""Calls by name become LLVM's intrinsics, or functions of :mod:`functions`.

The names are those of OpenCL C for what TIR has no word for, and ours; what each means is said
where CUDA's functions stand (`compiler/cuda/functions.py`). TIR's vectors are LLVM's, so four bytes
in a word are a vector of four there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..operators import operator
from .kernels import Handlers, Node, rewritten, threads

CALL = "tirx.call_pure_extern"
_TYPES = {"float32": "float", "int32": "int"}


def lower_externs(module: tvm.IRModule, wave: int) -> tvm.IRModule:
    """Return kernels without calls of functions that LLVM does not know.

    Parameters
    ----------
    module : IRModule
        Kernels as TVM splits them from the host's code.
    wave : int
        Threads that run together.
    """

    def handlers(function: tirx.PrimFunc) -> Handlers:
        places = _places(function, wave)

        def call(node: Node, mutator: Any) -> Node:
            new = mutator.default_mutate(node)
            if operator(new) != CALL:
                return new
            name, arguments, dtype = new.args[0].value, list(new.args)[1:], str(new.ty.dtype)
            if name in places:
                return places[name]()
            if name.startswith("fabric_subgroup_"):
                return T.call_pure_extern(dtype, f"{name}_{_TYPES[dtype]}", *arguments)
            known = _KNOWN.get(name)
            return known(dtype, arguments) if known else new

        return [(tvm.ir.Call, call)]

    return rewritten(module, handlers)


def _places(function: tirx.PrimFunc, wave: int) -> dict[str, Callable[[], Node]]:
    """Return what a kernel's threads are called by: waves are of neighbours, axis x first."""
    axes = threads(function)
    linear: Node = tirx.const(0, "int32")
    count = 1
    for axis in "xyz":
        if (tag := f"threadIdx.{axis}") in axes:
            index, extent = axes[tag]
            linear, count = linear + index * count, count * extent
    number = tirx.const(wave.bit_length() - 1, "int32")
    return {
        "fabric_subgroup_size": lambda: tirx.const(wave, "int32"),
        "fabric_subgroup_count": lambda: tirx.const((count + wave - 1) // wave, "int32"),
        "fabric_subgroup_lane": lambda: T.call_pure_extern("int32", "fabric_lane"),
        # The same in all threads of a wave, which LLVM is told so that scalar registers hold it.
        "fabric_subgroup_id": lambda: _intrinsic(
            "int32", "llvm.amdgcn.readfirstlane", tirx.shift_right(linear, number)
        ),
    }


def _intrinsic(dtype: str, name: str, *arguments: Node) -> Node:
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def _reinterpret(dtype: str, arguments: Sequence[Node]) -> Node:
    return T.reinterpret(dtype, arguments[0])


def _vector(_dtype: str, arguments: Sequence[Node]) -> Node:
    return tirx.Shuffle(list(arguments), list(range(len(arguments))))


def _fma(dtype: str, arguments: Sequence[Node]) -> Node:
    return _intrinsic(dtype, "llvm.fma", *arguments)


def _dot(dtype: str, arguments: Sequence[Node]) -> Node:
    return _intrinsic(dtype, "llvm.amdgcn.sdot4", *arguments, tirx.const(False, "bool"))


def _saturated(_dtype: str, arguments: Sequence[Node]) -> Node:
    """Return four floats as the nearest signed bytes, half to even."""
    lanes = [T.call_pure_extern("int32", "fabric_byte", _lane(arguments[0], i)) for i in range(4)]
    word = lanes[0]
    for i in range(1, 4):
        word = tirx.bitwise_or(word, tirx.shift_left(lanes[i], tirx.const(8 * i, "int32")))
    return T.reinterpret("int8x4", word)


def _lane(vector: Node, index: int) -> Node:
    return tirx.Shuffle([vector], [index])


_KNOWN: dict[str, Callable[[str, Sequence[Node]], Node]] = {
    "(float2)": _vector,
    "(float4)": _vector,
    "(int2)": _vector,
    "(int4)": _vector,
    "as_char4": _reinterpret,
    "as_int": _reinterpret,
    "as_float2": _reinterpret,
    "as_float4": _reinterpret,
    "convert_char4_sat_rte": _saturated,
    "fabric_dot4": _dot,
    "fma": _fma,
}
"""``known(dtype, arguments)`` returns what a call becomes."""
