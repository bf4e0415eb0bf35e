"""What a kernel is given: its argument block, and its buffers by address or by descriptor.

The block holds the scalars, with addresses the buffers' addresses, and for a kernel that can be
folded the true extents of its grid. It is the push constants; where it is larger than those may be,
the push constants are the address of a buffer that holds it. Its members are words and pairs of
words, whatever they stand for, so that it asks no 64-bit integers of a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntFlag

from .builder import Builder
from .errors import Refuse
from .grammar import Capability, Decoration, MemoryAccess, Op, StorageClass
from .types import WORD, Types
from .values import DType

WORD_BYTES = 4
ADDRESS_BYTES = 8
AXES = 3


class Access(IntFlag):
    """What a kernel does with a buffer."""

    READ = 1
    WRITE = 2


@dataclass
class Argument:
    """One argument of a kernel.

    Attributes
    ----------
    dtype : DType, optional
        Of a scalar; None for a buffer.
    place : int
        Byte of the argument block; without addresses, a buffer's binding.
    access : Access
        What the code that has been written so far does with a buffer.
    """

    dtype: DType | None
    place: int
    access: Access = field(default=Access(0))


def aligned(offset: int, alignment: int) -> int:
    """Return the next multiple of an alignment."""
    return -(-offset // alignment) * alignment


class Interface:
    """The arguments of a kernel.

    Parameters
    ----------
    builder : Builder
        The module.
    types : Types
        Its types.
    parameters : sequence of DType or None
        The scalars' types, None for a buffer.
    foldable : bool
        Whether the block ends with the grid's extents.
    distinct : bool
        Whether buffers never overlap.
    refuse : callable
        Makes the error of a block that has no room.

    Attributes
    ----------
    arguments : list of Argument
        In the parameters' order.
    foldable : bool
        Whether the block ends with the grid's extents.
    grid_offset : int
        Their byte in the block; 0 where there are none.
    block_bytes : int
        Size of the block.
    spilled : bool
        Whether the block is in a buffer of its own.
    """

    def __init__(
        self,
        builder: Builder,
        types: Types,
        parameters: Sequence[DType | None],
        foldable: bool,
        distinct: bool,
        refuse: Refuse,
    ) -> None:
        self.builder, self.types, self._distinct = builder, types, distinct
        self.addresses = types.abilities.addresses
        self.arguments: list[Argument] = []
        self._members: list[tuple[int, int]] = []
        self._lay_out(parameters)
        self.foldable, self.grid_offset = foldable, 0
        if foldable:
            self.grid_offset = self._place(WORD_BYTES)
            for _ in range(AXES - 1):
                self._place(WORD_BYTES)
        self.block_bytes = sum(self._members[-1]) if self._members else 0
        self.spilled = self.block_bytes > types.abilities.push_constants
        if self.spilled and not self.addresses:
            raise refuse(f"scalar arguments of {self.block_bytes} bytes")
        if self.addresses:
            builder.require(Capability.PhysicalStorageBufferAddresses)
        self.memory = (
            StorageClass.PhysicalStorageBuffer if self.addresses else StorageClass.StorageBuffer
        )
        self._block: int | None = None
        self._words: dict[int, int] = {}
        self._bases: dict[tuple[int, DType], int] = {}
        self._strided: set[int] = set()
        self._structures: list[tuple[int, int]] = []
        self._variables: dict[int, list[int]] = {}

    def _lay_out(self, parameters: Sequence[DType | None]) -> None:
        bindings = 0
        for dtype in parameters:
            if dtype is None and not self.addresses:
                self.arguments.append(Argument(None, bindings))
                bindings += 1
                continue
            # A narrow scalar takes a word, of which the low bits are it.
            size = ADDRESS_BYTES if dtype is None else max(dtype.bits, WORD) // 8
            self.arguments.append(Argument(dtype, self._place(size)))

    def _place(self, size: int) -> int:
        """Return the offset of the block's next member."""
        end = sum(self._members[-1]) if self._members else 0
        self._members.append((aligned(end, size), size))
        return self._members[-1][0]

    # The argument block

    def words(self, place: int) -> int:
        """Return the member at an offset: a word, or a vector of two words.

        It is read at the function's start, so any place of the function can use it.
        """
        if self._block is None:
            self._block = self._declare_block()
        found = self._words.get(place)
        if found is None:
            position = [offset for offset, _ in self._members].index(place)
            size = self._members[position][1]
            found = self._member(self._block, self._block_class, position, size)
            self._words[place] = found
        return found

    @property
    def _block_class(self) -> StorageClass:
        if self.spilled:
            return StorageClass.PhysicalStorageBuffer
        return StorageClass.PushConstant

    def _member(self, block: int, storage: StorageClass, position: int, size: int) -> int:
        dtype = self.types.vector(self.types.word, size // WORD_BYTES)
        pointer = self.types.pointer(storage, dtype)
        number = self.builder.declare_constant(Op.Constant, self.types.word, position)
        chain = self.builder.early(Op.AccessChain, pointer, block, number)
        if storage == StorageClass.PushConstant:
            return self.builder.early(Op.Load, dtype, chain)
        return self.builder.early(Op.Load, dtype, chain, MemoryAccess.Aligned, size)

    def _declare_block(self) -> int:
        """Return the block's variable, or where it is spilled the pointer to it."""
        block = self._structure_of(self._members)
        if not self.spilled:
            return self._push_constants(block)
        address = self._push_constants(self._structure_of([(0, ADDRESS_BYTES)]))
        words = self._member(address, StorageClass.PushConstant, 0, ADDRESS_BYTES)
        for position in range(len(self._members)):
            self.builder.decorate_member(block, position, Decoration.NonWritable)
        pointer = self.types.pointer(StorageClass.PhysicalStorageBuffer, block)
        return self.builder.early(Op.Bitcast, pointer, words)

    def _structure_of(self, members: Sequence[tuple[int, int]]) -> int:
        types = [self.types.vector(self.types.word, size // WORD_BYTES) for _, size in members]
        structure = self.builder.new_type(Op.TypeStruct, *types)
        self.builder.decorate(structure, Decoration.Block)
        for position, (offset, _) in enumerate(members):
            self.builder.decorate_member(structure, position, Decoration.Offset, offset)
        return structure

    def _push_constants(self, structure: int) -> int:
        pointer = self.types.pointer(StorageClass.PushConstant, structure)
        return self.builder.global_variable(pointer, StorageClass.PushConstant)

    # Buffers

    def note(self, index: int, access: Access) -> None:
        """Remember that the kernel reads or writes a buffer."""
        self.arguments[index].access |= access

    def element(self, index: int, unit: DType, place: int) -> int:
        """Return the pointer to the element `place` of a buffer seen as an array of `unit`.

        Parameters
        ----------
        index : int
            The argument.
        unit : DType
            A type of memory, of 1, 2 or 4 lanes.
        place : int
            The id of the element's number.
        """
        pointer = self.types.pointer(self.memory, self.types.memory(unit, self.memory))
        base = self._bases.get((index, unit))
        if base is None:
            base = self._bases[index, unit] = self._base(index, unit)
        zero = self.builder.declare_constant(Op.Constant, self.types.word, 0)
        return self.builder.pure(Op.AccessChain, pointer, base, zero, place)

    def _base(self, index: int, unit: DType) -> int:
        pointer = self.types.pointer(self.memory, self._array_of(index, unit))
        place = self.arguments[index].place
        if self.addresses:
            return self.builder.early(Op.Bitcast, pointer, self.words(place))
        variable = self.builder.global_variable(pointer, self.memory)
        self.builder.decorate(variable, Decoration.DescriptorSet, 0)
        self.builder.decorate(variable, Decoration.Binding, place)
        self._variables.setdefault(index, []).append(variable)
        return variable

    def _array_of(self, index: int, unit: DType) -> int:
        """Return a structure of an argument's own, so that it alone can be read-only."""
        element = self.types.memory(unit, self.memory)
        array = self.builder.declare_type(Op.TypeRuntimeArray, element)
        if array not in self._strided:
            self.builder.decorate(array, Decoration.ArrayStride, unit.lanes * unit.bits // 8)
            self._strided.add(array)
        structure = self.builder.new_type(Op.TypeStruct, array)
        self.builder.decorate(structure, Decoration.Block)
        self.builder.decorate_member(structure, 0, Decoration.Offset, 0)
        self._structures.append((index, structure))
        return structure

    def finish(self) -> None:
        """Say of each buffer what only the whole code tells: that it is not written, or alone."""
        for index, structure in self._structures:
            if not self.arguments[index].access & Access.WRITE:
                self.builder.decorate_member(structure, 0, Decoration.NonWritable)
        for variables in self._variables.values():
            # A buffer that is seen as two types is two variables.
            alone = self._distinct and len(variables) == 1
            for variable in variables:
                decoration = Decoration.Restrict if alone else Decoration.Aliased
                self.builder.decorate(variable, decoration)
