"""Arrays of a thread, and memory that a work-group shares.

Such an array has elements of one SPIR-V type. A view of vectors over scalars, or of scalars over
vectors, addresses the lanes; one of another type of as many bits takes the bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from .conversions import Conversions, memory_type
from .errors import Refuse
from .grammar import MemoryAccess, Op, StorageClass
from .interface import Access
from .memory import places
from .values import UINT32, DType, Value, part_lanes


@dataclass(frozen=True)
class _Sight:
    """How an array looks as elements of a type.

    Attributes
    ----------
    stored : DType
        The type as which such an element lies here.
    lanes : int
        Of what one access moves.
    kind, pointer : int
        The types of that, and of the pointer to it.
    """

    stored: DType
    lanes: int
    kind: int
    pointer: int


class ArrayMemory:
    """An array of a thread or of a work-group.

    Parameters
    ----------
    conversions : Conversions
        Of the module.
    storage : StorageClass
        ``Function`` or ``Workgroup``.
    dtype : DType
        The elements' TIR type.
    count : int
        Elements.
    coherent : bool
        Whether accesses must say that other threads see them (in Vulkan's memory model).
    refuse : callable
        Makes the error of a view that the memory does not allow.

    Attributes
    ----------
    bytes : int
        What it takes.
    """

    def __init__(
        self,
        conversions: Conversions,
        storage: StorageClass,
        dtype: DType,
        count: int,
        coherent: bool,
        refuse: Refuse,
    ) -> None:
        self.conversions, self.arithmetic = conversions, conversions.arithmetic
        self.builder, self.types = self.arithmetic.builder, self.arithmetic.types
        self.storage, self.refuse, self._dtype = storage, refuse, dtype
        self._operands = (MemoryAccess.NonPrivatePointer,) if coherent else ()
        self._sights: dict[DType, _Sight] = {}
        stored = self._stored_type(dtype)
        # A vector of more than four lanes is several elements.
        self._unit = stored.of(part_lanes(stored.lanes))
        self._count = count * (stored.lanes // self._unit.lanes)
        self.bytes = self._count * self._unit.lanes * self._unit.bits // 8
        unit = self._type_of(self._unit)
        whole = unit if self._count == 1 else self.types.array(unit, self._count)
        pointer = self.types.pointer(storage, whole)
        if storage == StorageClass.Function:
            self._variable = self.builder.local_variable(pointer)
        else:
            self._variable = self.builder.global_variable(pointer, storage)

    def _stored_type(self, dtype: DType) -> DType:
        """Return the type of an element: a thread's registers, or narrow ones that are shared.

        What is shared is narrow only where the device computes in it.
        """
        held, abilities = self.types.held(dtype), self.types.abilities
        if self.storage == StorageClass.Function:
            return held
        if held.kind == "bool":
            return UINT32.of(dtype.lanes)
        stored = memory_type(dtype)
        able = {8: abilities.int8, 16: abilities.int16 or held.bits == 16, 64: held.bits == 64}
        return stored if able.get(stored.bits, True) else held

    def _type_of(self, piece: DType) -> int:
        if self.storage == StorageClass.Function:
            return self.types.register(piece, piece.lanes)
        return self.types.memory(piece, self.storage)

    def _sight(self, dtype: DType) -> _Sight:
        """Return how the array looks as elements of a type.

        Raises
        ------
        FabricError
            If their lanes are not as wide as those of the array.
        """
        found = self._sights.get(dtype)
        if found is None:
            stored = self._stored_type(dtype)
            narrow, wide = sorted((stored.lanes, self._unit.lanes))
            dense = self._is_dense(dtype) and self._is_dense(self._dtype)
            like = dtype.bits == self._dtype.bits or dense
            if stored.bits != self._unit.bits or wide % narrow or not like:
                raise self.refuse(f"memory of {self._dtype} as {dtype}")
            lanes = self._unit.lanes if stored.lanes % self._unit.lanes == 0 else 1
            kind = self._type_of(self._unit.of(lanes))
            pointer = self.types.pointer(self.storage, kind)
            found = self._sights[dtype] = _Sight(stored, lanes, kind, pointer)
        return found

    def _is_dense(self, dtype: DType) -> bool:
        """Tell whether elements take no more bits here than they have."""
        stored = self._stored_type(dtype)
        return stored.bits * stored.lanes == dtype.bits * dtype.lanes

    def read(self, dtype: DType, place: Value) -> Value:
        """See :meth:`.memory.Memory.read`."""
        sight = self._sight(dtype)
        load = self.builder.value
        pieces = tuple(
            [
                load(Op.Load, sight.kind, pointer, *self._operands)
                for pointer in self._pointers(sight, place)
            ]
        )
        stored = sight.stored
        value = Value(self._unit.scalar.of(stored.lanes), pieces)
        if sight.lanes != part_lanes(stored.lanes):
            value = self.arithmetic.vector(self._unit.scalar, self._lanes(pieces, sight.lanes))
        if self._unit.kind != stored.kind:
            value = self.arithmetic.apply(Op.Bitcast, stored, value)
        if dtype.kind == "bool" and stored.kind != "bool":
            return self.conversions.cast(value, dtype)
        if self.storage == StorageClass.Function or stored == self.types.held(dtype):
            return Value(dtype, value.parts)
        return self.conversions.from_memory(value, dtype)

    def _lanes(self, pieces: tuple[int, ...], width: int) -> list[int]:
        kind = self._unit.of(width)
        return [lane for piece in pieces for lane in self.arithmetic.lanes(Value(kind, (piece,)))]

    def write(self, value: Value, place: Value) -> None:
        """See :meth:`.memory.Memory.write`."""
        sight = self._sight(value.dtype)
        stored = sight.stored
        if value.dtype.kind == "bool" and stored.kind != "bool":
            value = self.conversions.cast(value, stored)
        elif self.storage != StorageClass.Function and stored != self.types.held(value.dtype):
            value = self.conversions.to_memory(value, self.storage)
        value = Value(stored, value.parts)
        if self._unit.kind != stored.kind:
            kind = self._unit.scalar.of(stored.lanes)
            value = self.arithmetic.apply(Op.Bitcast, kind, value)
        pieces = value.parts
        if sight.lanes != part_lanes(stored.lanes):
            pieces = self._cut(value, sight.lanes)
        for pointer, piece in zip(self._pointers(sight, place), pieces, strict=True):
            self.builder.effect(Op.Store, pointer, piece, *self._operands)

    def _cut(self, value: Value, width: int) -> tuple[int, ...]:
        """Return a value's lanes in pieces of some."""
        lanes, scalar = self.arithmetic.lanes(value), value.dtype.scalar
        groups = [lanes[i : i + width] for i in range(0, len(lanes), width)]
        return tuple(self.arithmetic.vector(scalar, group).id for group in groups)

    def pointer(self, dtype: DType, place: Value, access: Access) -> int:
        """See :meth:`.memory.Memory.pointer`."""
        (pointer,) = self._pointers(self._sight(dtype), place)
        return pointer

    def _pointers(self, sight: _Sight, place: Value) -> list[int]:
        """Return the pointers to the pieces of an element."""
        lanes = sight.stored.lanes
        chain, variable = self.builder.pure, self._variable
        if lanes % self._unit.lanes == 0:
            if self._count == 1:
                return [variable]
            return [
                chain(Op.AccessChain, sight.pointer, variable, at)
                for at in places(self.arithmetic, place, lanes // self._unit.lanes)
            ]
        return [
            chain(Op.AccessChain, sight.pointer, variable, *indices)
            for indices in self._lane_places(lanes, place)
        ]

    def _lane_places(self, lanes: int, place: Value) -> list[tuple[int, ...]]:
        """Return the indices of each lane of an element that is a part of a vector here."""
        place = self.arithmetic.index(place)
        # Indices are not negative.
        index = Value(DType("uint", place.dtype.bits), place.parts)
        number = self.arithmetic.constant(index.dtype, self._unit.lanes // lanes)
        unit = self.arithmetic.divide(index, number)
        first = self.arithmetic.remainder(index, number)
        within = places(self.arithmetic, first, lanes)
        return [(lane,) if self._count == 1 else (unit.id, lane) for lane in within]
