"""What the passes of this folder share: walking the kernels of a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

Node = Any
Handlers = Sequence[tuple[Any, Callable[[Node, Any], Node]]]
"""Classes of nodes, and ``handler(node, mutator)`` that returns what stands in their place."""


def rewritten(module: tvm.IRModule, handlers: Callable[[tirx.PrimFunc], Handlers]) -> tvm.IRModule:
    """Return a module whose kernels' bodies went through `handlers`, made for each kernel."""
    functions = {}
    for name, function in module.functions.items():
        body = tvm_ffi.structural_mutate(function.body, list(handlers(function)))
        functions[name] = tirx.PrimFunc(
            function.params, body, function.ret_type, attrs=function.attrs
        )
    return tvm.IRModule(functions, attrs=module.attrs)


def threads(function: tirx.PrimFunc) -> dict[str, tuple[Node, int]]:
    """Return the index and the number of a kernel's threads along each axis: ``threadIdx.x``."""
    found: dict[str, tuple[Node, int]] = {}

    def visit(node: tirx.AttrStmt) -> None:
        tag = node.node.thread_tag if node.attr_key == "thread_extent" else ""
        if tag.startswith("threadIdx."):
            found[tag] = node.node.var, int(node.value)

    tvm_ffi.structural_walk(function.body, (tirx.AttrStmt, visit))
    return found
