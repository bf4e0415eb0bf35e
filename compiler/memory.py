"""What the lowered functions allocate, read from the memory plan in the module."""

from __future__ import annotations

import tvm
from tvm import relax


def function_workspaces(module: tvm.IRModule) -> dict[str, int]:
    """Return for each Relax function the bytes of storage that its static plan allocates.

    Functions over symbolic sizes plan at run time; what they allocate by constant size is counted.
    """
    planned = {}
    for name, function in module.functions.items():
        if isinstance(function, relax.Function):
            planned[name.name_hint] = _planned_bytes(function)
    return planned


def _planned_bytes(function: relax.Function) -> int:
    total = 0

    def visit(node: relax.Expr) -> None:
        nonlocal total
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") in (
            "relax.vm.alloc_storage",
            "relax.memory.alloc_storage",
        ):
            size = node.args[0]
            for extent in getattr(size, "values", []):
                total += int(extent) if isinstance(extent, tvm.tirx.IntImm) else 0

    relax.analysis.post_order_visit(function, visit)
    return total
