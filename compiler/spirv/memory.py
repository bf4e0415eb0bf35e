"""Buffers of TIR, which are views of some memory, and the memory of buffer arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .arithmetic import Arithmetic
from .conversions import Conversions, memory_type
from .grammar import MemoryAccess, Op
from .interface import Access, Interface
from .values import DType, Value, part_lanes


class Memory(Protocol):
    """Some memory that a kernel reads and writes."""

    def read(self, dtype: DType, place: Value) -> Value:
        """Return the element `place` of the memory as an array of a TIR type."""

    def write(self, value: Value, place: Value) -> None:
        """Store an element of an array of the value's type."""

    def pointer(self, dtype: DType, place: Value, access: Access) -> int:
        """Return the pointer to an element, for an instruction that reads or writes through it."""


@dataclass(frozen=True)
class View:
    """A buffer of TIR.

    Attributes
    ----------
    memory : Memory
        Where it lies.
    dtype : DType
        Of an element.
    offset : Value, optional
        The element of the memory where it begins; None for the first.
    """

    memory: Memory
    dtype: DType
    offset: Value | None = None


class BufferMemory:
    """A buffer argument.

    Parameters
    ----------
    interface : Interface
        The kernel's arguments.
    conversions : Conversions
        Of the module.
    index : int
        Which argument.
    """

    def __init__(self, interface: Interface, conversions: Conversions, index: int) -> None:
        self.interface, self.index = interface, index
        self.conversions, self.arithmetic = conversions, conversions.arithmetic

    def read(self, dtype: DType, place: Value) -> Value:
        """See :meth:`Memory.read`."""
        self.interface.note(self.index, Access.READ)
        stored = memory_type(dtype)
        unit = _unit(stored)
        kind = self.interface.types.memory(unit, self.interface.memory)
        load = self.arithmetic.builder.value
        units = [
            load(Op.Load, kind, pointer, *self._operands(unit))
            for pointer in self._pointers(stored, unit, place)
        ]
        if unit.lanes == part_lanes(stored.lanes):
            return self.conversions.from_memory(Value(stored, tuple(units)), dtype)
        # Three lanes lie as scalars, which from_memory takes one at a time.
        lanes = [self.conversions.from_memory(Value(unit, (u,)), dtype.scalar).id for u in units]
        return self.arithmetic.vector(dtype.scalar, lanes)

    def write(self, value: Value, place: Value) -> None:
        """See :meth:`Memory.write`."""
        self.interface.note(self.index, Access.WRITE)
        stored = memory_type(value.dtype)
        unit = _unit(stored)
        if unit.lanes == part_lanes(stored.lanes):
            units = self.conversions.to_memory(value, self.interface.memory).parts
        else:
            units = tuple(
                self.conversions.to_memory(
                    Value(value.dtype.scalar, (lane,)), self.interface.memory
                ).id
                for lane in self.arithmetic.lanes(value)
            )
        pointers = self._pointers(stored, unit, place)
        for pointer, part in zip(pointers, units, strict=True):
            self.arithmetic.builder.effect(Op.Store, pointer, part, *self._operands(unit))

    def pointer(self, dtype: DType, place: Value, access: Access) -> int:
        """See :meth:`Memory.pointer`."""
        self.interface.note(self.index, access)
        stored = memory_type(dtype)
        (pointer,) = self._pointers(stored, _unit(stored), place)
        return pointer

    def _pointers(self, stored: DType, unit: DType, place: Value) -> list[int]:
        """Return the pointers to the units of an element."""
        count = stored.lanes // unit.lanes
        element = self.interface.element
        return [element(self.index, unit, at) for at in places(self.arithmetic, place, count)]

    def _operands(self, unit: DType) -> tuple[int, ...]:
        if not self.interface.addresses:
            return ()
        return MemoryAccess.Aligned, unit.lanes * unit.bits // 8


def _unit(stored: DType) -> DType:
    """Return the type that one access of a buffer moves: three lanes lie as scalars."""
    width = part_lanes(stored.lanes)
    return stored.of(1 if width == 3 else width)


def places(arithmetic: Arithmetic, place: Value, count: int) -> list[int]:
    """Return the numbers of the `count` units that an element consists of."""
    place = arithmetic.index(place)
    if count == 1:
        return [place.id]
    first = arithmetic.multiply(place, arithmetic.constant(place.dtype, count))
    return [
        arithmetic.add(first, arithmetic.constant(place.dtype, i)).id if i else first.id
        for i in range(count)
    ]
