"""Barriers of a work-group become ones that also order its memory.

TVM's generator writes the bare instruction. From gfx90a on it lets a thread pass while its own
writes to shared memory are still on their way (LLVM, "User Guide for AMDGPU Backend", "Memory
Model": the fences around a barrier are what waits), so a neighbour would read what was there
before.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..operators import operator
from .kernels import Handlers, Node, rewritten

BARRIER = "fabric_barrier"
"""The function of :mod:`functions`."""


def lower_barriers(module: tvm.IRModule) -> tvm.IRModule:
    """Return kernels whose barriers are calls of `BARRIER`."""

    def call(node: Node, mutator: Any) -> Node:
        if operator(node) == "tirx.tvm_storage_sync":
            return T.call_extern("void", BARRIER)
        return mutator.default_mutate(node)

    def handlers(_function: tirx.PrimFunc) -> Handlers:
        return [(tvm.ir.Call, call)]

    return rewritten(module, handlers)
