"""Where a thread is: its group in the grid, its place in the group and in the subgroup.

A grid with more groups along an axis than a device launches is folded: the backend launches at
least as many groups in another shape, sets a specialisation constant, and each group finds its
place by its number.
"""

from __future__ import annotations

from collections.abc import Sequence

from .builder import Builder
from .grammar import BuiltIn, Decoration, Op, StorageClass
from .interface import AXES, WORD_BYTES, Interface
from .types import Types

FOLDED = 3
"""The specialisation constant that tells whether the grid is folded; 0 to 2 are a group's size."""
LEAST_GROUPS = 65535
"""Groups along an axis that every device launches (Vulkan's least maxComputeWorkGroupCount)."""


class Launch:
    """The indices of a thread.

    Parameters
    ----------
    builder : Builder
        The module.
    types : Types
        Its types.
    interface : Interface
        Which has the grid's extents where the kernel is foldable.
    threads : sequence of int
        The group's size along x, y and z, where it is known; it is set at launch.
    """

    def __init__(
        self, builder: Builder, types: Types, interface: Interface, threads: Sequence[int]
    ) -> None:
        self.builder, self.types, self.interface = builder, types, interface
        self._vector = types.vector(types.word, AXES)
        self._variables: dict[BuiltIn, int] = {}
        self._read: dict[tuple[BuiltIn, int], int] = {}
        self._declare_size(threads)
        self._groups = self._unfold() if interface.foldable else None

    def _declare_size(self, threads: Sequence[int]) -> None:
        sizes = []
        for axis, extent in enumerate(threads):
            sizes.append(self.builder.new_constant(Op.SpecConstant, self.types.word, extent))
            self.builder.decorate(sizes[-1], Decoration.SpecId, axis)
        size = self.builder.new_constant(Op.SpecConstantComposite, self._vector, *sizes)
        self.builder.decorate(size, Decoration.BuiltIn, BuiltIn.WorkgroupSize)

    def group(self, axis: int) -> int:
        """Return a group's index along an axis, as a word."""
        if self._groups is not None:
            return self._groups[axis]
        return self._of_vector(BuiltIn.WorkgroupId, axis)

    def thread(self, axis: int) -> int:
        """Return a thread's index in its group along an axis."""
        return self._of_vector(BuiltIn.LocalInvocationId, axis)

    def word(self, name: BuiltIn) -> int:
        """Return a value of one word that the device provides."""
        found = self._read.get((name, 0))
        if found is None:
            variable = self._variable(name, self.types.word)
            found = self._read[name, 0] = self.builder.early(Op.Load, self.types.word, variable)
        return found

    def _of_vector(self, name: BuiltIn, axis: int) -> int:
        found = self._read.get((name, axis))
        if found is None:
            vector = self.builder.early(Op.Load, self._vector, self._variable(name, self._vector))
            for i in range(AXES):
                lane = self.builder.early(Op.CompositeExtract, self.types.word, vector, i)
                self._read[name, i] = lane
            found = self._read[name, axis]
        return found

    def _variable(self, name: BuiltIn, dtype: int) -> int:
        if name not in self._variables:
            pointer = self.types.pointer(StorageClass.Input, dtype)
            variable = self.builder.global_variable(pointer, StorageClass.Input)
            self.builder.decorate(variable, Decoration.BuiltIn, name)
            self._variables[name] = variable
        return self._variables[name]

    def _unfold(self) -> list[int]:
        """Write how a group finds its indices; one past the grid's end leaves at once."""
        builder, word, boolean = self.builder, self.types.word, self.types.boolean
        folded = builder.new_constant(Op.SpecConstantFalse, boolean)
        builder.decorate(folded, Decoration.SpecId, FOLDED)
        here = [self._of_vector(BuiltIn.WorkgroupId, axis) for axis in range(AXES)]
        wide, high, _ = (self._of_vector(BuiltIn.NumWorkgroups, axis) for axis in range(AXES))
        offset = self.interface.grid_offset
        x, y, z = (self.interface.words(offset + WORD_BYTES * axis) for axis in range(AXES))

        def compute(op: Op, a: int, b: int) -> int:
            return builder.pure(op, word, a, b)

        number = compute(Op.IAdd, compute(Op.IMul, here[2], high), here[1])
        number = compute(Op.IAdd, compute(Op.IMul, number, wide), here[0])
        count = compute(Op.IMul, compute(Op.IMul, x, y), z)
        past = builder.pure(Op.UGreaterThanEqual, boolean, number, count)
        leaving = builder.pure(Op.LogicalAnd, boolean, folded, past)
        leave, stay = builder.new_id(), builder.new_id()
        builder.branch_if(leaving, leave, stay, merge=stay)
        builder.begin(leave)
        builder.leave()
        builder.begin(stay)
        row = compute(Op.UDiv, number, x)
        true = [compute(Op.UMod, number, x), compute(Op.UMod, row, y), compute(Op.UDiv, row, y)]
        return [
            builder.pure(Op.Select, word, folded, index, plain)
            for index, plain in zip(true, here, strict=True)
        ]
