"""Which launches of a kernel need each other, for runtimes that can run the others side by side.

A launch needs an earlier one if it reads what that writes, or writes what that reads or writes.
What the launches of a kernel write besides its results is memory of its own, each part apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from .operators import operator

COPIES = ("fabric_copy_vector", "fabric_warpgroup_copy_block")
"""Functions that only read what their third argument, after their name, is the address of."""
SOURCE = 2
GLOBAL = ("", "global")
Needs = list[list[int]]
"""For each launch the earlier ones that it needs, without those that these need in turn."""


def branches(module: tvm.IRModule) -> dict[str, Needs]:
    """Return what the launches of each kernel need, of those that are no chain."""
    found = {}
    for name, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc):
            needs = launch_needs(function)
            if needs != [[i - 1] if i else [] for i in range(len(needs))]:
                found[name.name_hint] = needs
    return found


def launch_needs(function: tirx.PrimFunc) -> Needs:
    """Return what each launch of a kernel needs; nothing where the host decides what to launch."""
    statements = list(_launches(function.body))
    if None in statements:
        return []
    memory = _Memory(function)
    touched = [memory.touched(statement) for statement in statements]
    needs: Needs = []
    known: list[set[int]] = []
    for i, (reads, writes) in enumerate(touched):
        wanted = {
            j
            for j, (read, written) in enumerate(touched[:i])
            if written & (reads | writes) or read & writes
        }
        implied = set().union(*(known[j] for j in wanted))
        needs.append(sorted(wanted - implied))
        known.append(wanted | implied)
    return needs


def _launches(statement: tirx.Stmt) -> Iterator[tirx.Stmt | None]:
    """Yield the launches in order; None where a branch or a loop of the host has any."""
    if isinstance(statement, tirx.SeqStmt):
        for part in statement.seq:
            yield from _launches(part)
    elif isinstance(statement, tirx.AttrStmt) and statement.attr_key == "thread_extent":
        yield statement
    elif isinstance(statement, (tirx.IfThenElse, tirx.For)):
        found: list[Any] = []
        tvm_ffi.structural_walk(statement, (tirx.AttrStmt, found.append))
        if found:
            yield None
    elif hasattr(statement, "body"):
        yield from _launches(statement.body)


class _Memory:
    """The memory of the device that a kernel's launches touch, a buffer for all that look at it."""

    def __init__(self, function: tirx.PrimFunc) -> None:
        self._roots: dict[Any, Any] = {}

        def note(node: tirx.DeclBuffer) -> None:
            if getattr(node.data, "args", ()):
                base = node.data.args[0]
                self._roots[node.buffer] = self._roots.get(base, base)

        tvm_ffi.structural_walk(function.body, (tirx.DeclBuffer, note))

    def touched(self, launch: tirx.Stmt) -> tuple[set[Any], set[Any]]:
        """Return what a launch reads, and what it may write."""
        reads: set[Any] = set()
        writes: set[Any] = set()

        def add(found: set[Any], buffer: tirx.Buffer) -> None:
            if buffer.scope() in GLOBAL:
                found.add(self._roots.get(buffer, buffer))

        def call(node: tvm.ir.Call) -> None:
            for buffer in _addressed(node):
                add(writes, buffer)

        handlers = (
            (tirx.BufferStore, lambda node: add(writes, node.buffer)),
            (tvm.ir.TensorLoad, lambda node: add(reads, node.source)),
            (tvm.ir.Call, call),
        )
        for handler in handlers:
            tvm_ffi.structural_walk(launch, handler)
        return reads, writes


def _addressed(call: tvm.ir.Call) -> Iterator[tirx.Buffer]:
    """Yield the buffers that a call is given the address of, but for what a copy reads."""
    external = operator(call).endswith("call_extern")
    copies = external and str(getattr(call.args[0], "value", "")) in COPIES
    for i, argument in enumerate(call.args):
        if copies and i == SOURCE:
            continue
        name = operator(argument)
        if name.endswith("address_of"):
            yield argument.args[0].source
        elif name.endswith("data") and isinstance(argument.args[0], tirx.Buffer):
            yield argument.args[0]
