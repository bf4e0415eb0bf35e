"""Writing a SPIR-V module: numbers for its values, its sections, and values computed once.

The module has one function without parameters. Types and constants are declared when they are
first asked for. An instruction without side effects is written once where it is needed several
times: it is looked up by what it computes among those that dominate the place
(`local value numbering`).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from .grammar import (
    GLSL,
    MAGIC,
    NONE,
    UNROLL,
    AddressingModel,
    Capability,
    Decoration,
    ExecutionMode,
    ExecutionModel,
    Glsl,
    MemoryModel,
    Op,
    StorageClass,
)

ENTRY = "main"
"""The name of every module's entry point."""


def text(content: str) -> tuple[int, ...]:
    """Return a string as the words of a literal: UTF-8, ended by a zero byte, padded."""
    data = content.encode() + b"\0"
    data += bytes(-len(data) % 4)
    return tuple(int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4))


class Builder:
    """A module under construction.

    Attributes
    ----------
    capabilities : dict
        The capabilities that the module has declared; the values are of no meaning.
    prologue : list of int
        Words at the function's start, for what every place of it may use.
    block : int
        The label of the block that is being written.
    open : bool
        Whether that block still lacks the instruction that ends it.
    """

    def __init__(self) -> None:
        self.capabilities: dict[Capability, None] = {Capability.Shader: None}
        self.prologue: list[int] = []
        self._extensions: dict[str, None] = {}
        self._modes: list[tuple[int, ...]] = []
        self._annotations: list[int] = []
        self._globals: list[int] = []
        self._variables: list[int] = []
        self._body: list[int] = []
        self._global_variables: list[tuple[int, StorageClass]] = []
        self._declared: dict[tuple[int, ...], int] = {}
        self._known: dict[tuple[int, ...], int] = {}
        self._scopes: list[list[tuple[int, ...]]] = []
        self._last = 0
        self._glsl = self.new_id()
        self._entry_label = self.block = self.new_id()
        self.open = True

    def new_id(self) -> int:
        """Return a number for a value that is declared later."""
        self._last += 1
        return self._last

    def require(self, capability: Capability, extension: str | None = None) -> None:
        """Declare a capability, and the extension that brings it."""
        self.capabilities[capability] = None
        if extension is not None:
            self._extensions[extension] = None

    def compute_by(self, mode: ExecutionMode, *operands: int) -> None:
        """Declare how the function computes."""
        self._modes.append((mode, *operands))

    # Declarations

    def declare_type(self, op: Op, *operands: int) -> int:
        """Return the type that an instruction declares, the same one for the same operands."""
        key = (op, *operands)
        found = self._declared.get(key)
        if found is None:
            found = self._declared[key] = self.new_type(op, *operands)
        return found

    def new_type(self, op: Op, *operands: int) -> int:
        """Declare a type of its own, to be decorated apart from others of the same operands."""
        result = self.new_id()
        self._globals += ((len(operands) + 2) << 16 | op, result, *operands)
        return result

    def declare_constant(self, op: Op, dtype: int, *operands: int) -> int:
        """Return a constant, the same one for the same operands."""
        key = (op, dtype, *operands)
        found = self._declared.get(key)
        if found is None:
            found = self.new_constant(op, dtype, *operands)
            self._declared[key] = found
        return found

    def new_constant(self, op: Op, dtype: int, *operands: int) -> int:
        """Declare a constant of its own, such as one that is set when the pipeline is made."""
        result = self.new_id()
        self._globals += ((len(operands) + 3) << 16 | op, dtype, result, *operands)
        return result

    def global_variable(self, pointer: int, storage: StorageClass) -> int:
        """Declare a variable of the module."""
        result = self.new_constant(Op.Variable, pointer, storage)
        self._global_variables.append((result, storage))
        return result

    def local_variable(self, pointer: int) -> int:
        """Declare a variable of the function."""
        result = self.new_id()
        self._variables += (4 << 16 | Op.Variable, pointer, result, StorageClass.Function)
        return result

    def decorate(self, target: int, decoration: Decoration, *operands: int) -> None:
        """Decorate a value or a type."""
        words = (target, decoration, *operands)
        self._annotations += ((len(words) + 1) << 16 | Op.Decorate, *words)

    def decorate_member(
        self, target: int, member: int, decoration: Decoration, *operands: int
    ) -> None:
        """Decorate a member of a structure."""
        words = (target, member, decoration, *operands)
        self._annotations += ((len(words) + 1) << 16 | Op.MemberDecorate, *words)

    # Instructions

    def effect(self, op: Op, *operands: int) -> None:
        """Write an instruction without a result."""
        self._body += ((len(operands) + 1) << 16 | op, *operands)

    def value(self, op: Op, dtype: int, *operands: int) -> int:
        """Write an instruction that must stand where it is; returns its result."""
        result = self.new_id()
        self._body += ((len(operands) + 3) << 16 | op, dtype, result, *operands)
        return result

    def define(self, op: Op, dtype: int, result: int, *operands: int) -> None:
        """Write an instruction whose result was used before."""
        self._body += ((len(operands) + 3) << 16 | op, dtype, result, *operands)

    def pure(self, op: Op, dtype: int, *operands: int) -> int:
        """Return what an instruction without side effects computes, written once."""
        key = (op, dtype, *operands)
        found = self._known.get(key)
        if found is None:
            found = self._last = self._last + 1
            self._body += ((len(operands) + 3) << 16 | op, dtype, found, *operands)
            self._known[key] = found
            if self._scopes:
                self._scopes[-1].append(key)
        return found

    def early(self, op: Op, dtype: int, *operands: int) -> int:
        """Write an instruction in the prologue; returns its result."""
        result = self.new_id()
        self.prologue += ((len(operands) + 3) << 16 | op, dtype, result, *operands)
        return result

    def glsl(self, instruction: Glsl, dtype: int, *operands: int) -> int:
        """Return the result of a mathematical function."""
        return self.pure(Op.ExtInst, dtype, self._glsl, instruction, *operands)

    # Control flow

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Enclose blocks whose values what comes after must not use."""
        self._scopes.append([])
        yield
        for key in self._scopes.pop():
            del self._known[key]

    def begin(self, label: int) -> None:
        """Begin a block."""
        self._body += (2 << 16 | Op.Label, label)
        self.block, self.open = label, True

    def branch(self, label: int) -> None:
        """End the block, unless it has ended, and go on at another."""
        if self.open:
            self.effect(Op.Branch, label)
            self.open = False

    def branch_if(self, condition: int, then: int, otherwise: int, merge: int) -> None:
        """End the block at a selection whose sides meet again in `merge`."""
        self.effect(Op.SelectionMerge, merge, NONE)
        self.effect(Op.BranchConditional, condition, then, otherwise)
        self.open = False

    def leave(self) -> None:
        """End the block and the thread's work."""
        if self.open:
            self.effect(Op.Return)
            self.open = False

    def phi(self, dtype: int, *sources: tuple[int, int], result: int | None = None) -> int:
        """Return the value that belongs to the block from which control came.

        Parameters
        ----------
        dtype : int
            Its type.
        sources : pair of int
            A value and the label of the block that it belongs to.
        result : int, optional
            The number of the result, where it was used before.
        """
        result = self.new_id() if result is None else result
        words = [word for source in sources for word in source]
        self._body += ((len(words) + 3) << 16 | Op.Phi, dtype, result, *words)
        return result

    def loop(self, merge: int, proceed: int, unroll: bool = False) -> None:
        """Mark the block as the head of a loop that ends at `merge` and repeats at `proceed`."""
        self.effect(Op.LoopMerge, merge, proceed, UNROLL if unroll else NONE)

    # The whole

    def assemble(
        self, version: tuple[int, int], addressing: AddressingModel, memory: MemoryModel
    ) -> bytes:
        """Return the module.

        Parameters
        ----------
        version : pair of int
            Of SPIR-V. From 1.4 on an entry point lists all variables, before only the inputs.
        addressing : AddressingModel
            Whether the function takes addresses.
        memory : MemoryModel
            The rules of its memory accesses.
        """
        nothing = self.declare_type(Op.TypeVoid)
        kind = self.declare_type(Op.TypeFunction, nothing)
        main = self.new_id()
        words: list[int] = []

        def put(op: IntEnum, *operands: int) -> None:
            words.extend(((len(operands) + 1) << 16 | op, *operands))

        for capability in sorted(self.capabilities):
            put(Op.Capability, capability)
        for extension in sorted(self._extensions):
            put(Op.Extension, *text(extension))
        put(Op.ExtInstImport, self._glsl, *text(GLSL))
        put(Op.MemoryModel, addressing, memory)
        listed = [
            variable
            for variable, storage in self._global_variables
            if version >= (1, 4) or storage == StorageClass.Input
        ]
        put(Op.EntryPoint, ExecutionModel.GLCompute, main, *text(ENTRY), *listed)
        for mode in self._modes:
            put(Op.ExecutionMode, main, *mode)
        words += self._annotations
        words += self._globals
        put(Op.Function, nothing, main, NONE, kind)
        put(Op.Label, self._entry_label)
        words += self._variables + self.prologue + self._body
        put(Op.FunctionEnd)
        number = version[0] << 16 | version[1] << 8
        header = [MAGIC, number, 0, self._last + 1, 0]
        data = array("I", header + words)
        if sys.byteorder == "big":
            data.byteswap()
        return data.tobytes()
