"""How TIR's types stand in registers and in memory.

In registers integers of up to 32 bits are 32-bit words, those of 8 and 16 bits extended by their
sign or by zeros: arithmetic of narrow integers is rare in devices. SPIR-V's integers are declared
without a sign here: instructions have one, types need none. Floats that the device does not
compute in are float32. 64-bit integers that it does not compute in are pairs of words.
"""

from __future__ import annotations

from .abilities import Abilities
from .builder import Builder
from .errors import Refuse
from .grammar import Capability, Op, StorageClass
from .values import FLOAT32, UINT32, DType

WORD = 32


class Types:
    """The SPIR-V types of a module.

    Parameters
    ----------
    builder : Builder
        Where they are declared.
    abilities : Abilities
        Of the target.
    refuse : callable
        Makes the error of a type that the target lacks.
    """

    def __init__(self, builder: Builder, abilities: Abilities, refuse: Refuse) -> None:
        self.builder, self.abilities, self.refuse = builder, abilities, refuse
        self._registers: dict[tuple[DType, int], int] = {}

    @property
    def boolean(self) -> int:
        """The type of a condition."""
        return self.builder.declare_type(Op.TypeBool)

    @property
    def word(self) -> int:
        """The 32-bit integer."""
        return self.integer(WORD)

    def integer(self, bits: int) -> int:
        """Return an integer type, of which instructions decide whether it has a sign."""
        return self.builder.declare_type(Op.TypeInt, bits, 0)

    def vector(self, scalar: int, lanes: int) -> int:
        """Return a vector type; of one lane the scalar itself."""
        if lanes == 1:
            return scalar
        return self.builder.declare_type(Op.TypeVector, scalar, lanes)

    def pointer(self, storage: StorageClass, dtype: int) -> int:
        """Return the type of pointers to a type in some storage."""
        return self.builder.declare_type(Op.TypePointer, storage, dtype)

    def array(self, dtype: int, count: int) -> int:
        """Return the type of arrays of `count` elements."""
        length = self.builder.declare_constant(Op.Constant, self.word, count)
        return self.builder.declare_type(Op.TypeArray, dtype, length)

    def held(self, dtype: DType) -> DType:
        """Return the type that a register has for a type of TIR, of as many lanes.

        Raises
        ------
        FabricError
            For a type that no register of the target's devices holds.
        """
        kind, bits, lanes = dtype
        if kind in ("bool", "float") and bits in (1, 32):
            return dtype
        if dtype.is_integer and bits <= WORD:
            return UINT32.of(lanes)
        if dtype.is_integer and bits == 64:
            if self.abilities.int64:
                return DType("uint", bits, lanes)
            if lanes == 1:
                return UINT32.of(2)
        if kind == "float" and bits == 16:
            return dtype if self.abilities.float16 else FLOAT32.of(lanes)
        if kind == "bfloat" and bits == 16:
            return FLOAT32.of(lanes)
        if kind == "float" and bits == 64 and self.abilities.float64:
            return dtype
        raise self.refuse(f"the type {dtype}")

    def register(self, dtype: DType, lanes: int) -> int:
        """Return the type of a register that holds some lanes of a type."""
        found = self._registers.get((dtype, lanes))
        if found is None:
            held = self.held(dtype.of(lanes))
            found = self.vector(self._register_scalar(held.scalar), held.lanes)
            self._registers[dtype, lanes] = found
        return found

    def _register_scalar(self, held: DType) -> int:
        if held.kind == "bool":
            return self.boolean
        needed = {16: Capability.Float16, 64: Capability.Float64}
        if held.is_integer:
            needed = {64: Capability.Int64}
        if held.bits in needed:
            self.builder.require(needed[held.bits])
        return self._scalar(held)

    def memory(self, dtype: DType, storage: StorageClass) -> int:
        """Return the type of an element in memory: any width, no bool, up to four lanes.

        Memory of a work-group, and what has an address, is for types that the device computes in;
        the buffers of 8 and 16 bits are an ability of their own.
        """
        if dtype.bits < WORD:
            self.builder.require(*self._narrow(dtype, storage))
        elif dtype.bits > WORD:
            able = self.abilities.int64 if dtype.is_integer else self.abilities.float64
            if not able:
                raise self.refuse(f"a buffer of {dtype.scalar}")
            self.builder.require(Capability.Int64 if dtype.is_integer else Capability.Float64)
        return self.vector(self._scalar(dtype), dtype.lanes)

    def _narrow(self, dtype: DType, storage: StorageClass) -> tuple[Capability, str | None]:
        computed = Capability.Int8 if dtype.bits == 8 else Capability.Int16
        if dtype.kind == "float":
            computed = Capability.Float16
        if storage == StorageClass.Workgroup:
            return computed, None
        if storage == StorageClass.PhysicalStorageBuffer:
            self.builder.require(computed)
        if dtype.bits == 8:
            if not self.abilities.buffers8:
                raise self.refuse("a buffer of 8-bit elements")
            return Capability.StorageBuffer8BitAccess, "SPV_KHR_8bit_storage"
        if not self.abilities.buffers16:
            raise self.refuse("a buffer of 16-bit elements")
        return Capability.StorageBuffer16BitAccess, "SPV_KHR_16bit_storage"

    def _scalar(self, dtype: DType) -> int:
        if dtype.is_integer:
            return self.integer(dtype.bits)
        return self.builder.declare_type(Op.TypeFloat, dtype.bits)
