"""What a kernel takes of a device, and the refusal of what no device of Apple's has.

Metal binds buffers to a table of 31 places (Metal Feature Set Tables, "Function arguments"); TVM
passes a kernel's scalars together in one more. Memory of a threadgroup is what the kernel declares,
all of it at once.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from ...targets.metal import ARGUMENTS
from ...targets.windows import item_bytes
from .errors import failure

ALIGNMENT = 16
"""Bytes that a piece of a threadgroup's memory is a multiple of (Metal Feature Set Tables)."""


def arguments(function: tirx.PrimFunc) -> int:
    """Return the places of the table that a kernel takes: its buffers, and one for its scalars."""
    pointers = [isinstance(parameter.ty, tvm.ir.PointerType) for parameter in function.params]
    return sum(pointers) + (not all(pointers))


def threadgroup_bytes(function: tirx.PrimFunc) -> int:
    """Return the memory of a threadgroup that a kernel declares, bytes."""
    total = 0

    def visit(node: tirx.AllocBuffer) -> None:
        nonlocal total
        buffer = node.buffer
        if buffer.scope() == "shared":
            size = math.prod(int(e) for e in buffer.shape) * item_bytes(str(buffer.dtype))
            total += -(-size // ALIGNMENT) * ALIGNMENT

    tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, visit))
    return total


def threads(function: tirx.PrimFunc) -> dict[str, tuple[tirx.Var, int]]:
    """Return a kernel's thread variables with their extents, by the axis: ``threadIdx.x``."""
    found: dict[str, tuple[tirx.Var, int]] = {}

    def visit(node: tirx.AttrStmt) -> None:
        if node.attr_key == "thread_extent" and node.node.thread_tag.startswith("threadIdx"):
            found[str(node.node.thread_tag)] = (node.node.var, int(node.value))

    tvm_ffi.structural_walk(function.body, (tirx.AttrStmt, visit))
    return found


def check(name: str, function: tirx.PrimFunc, target: Any) -> None:
    """Refuse a kernel that is beyond a target's limits.

    Raises
    ------
    MetalCodeError
        The sentence names the kernel and what it takes.
    """
    count = math.prod(extent for _, extent in threads(function).values())
    for taken, most, what, remedy in (
        (arguments(function), ARGUMENTS, "buffers as arguments",
         "Compile with a smaller --context or --micro-batch, so that fewer tensors are split."),
        (threadgroup_bytes(function), int(target.attrs["max_shared_memory_per_block"]),
         "bytes of a threadgroup's memory", "Use --target cpu, and report this."),
        (count, int(target.attrs["max_threads_per_block"]), "threads in a threadgroup",
         "Use --target cpu, and report this."),
    ):  # fmt: skip
        if taken > most:
            raise failure(f"The kernel {name} takes {taken} {what} where Metal has {most}.", remedy)
