"""Casts, and narrow types between registers and memory."""

from __future__ import annotations

from .arithmetic import Arithmetic
from .bits import Bits
from .grammar import Op, StorageClass
from .pairs import PairArithmetic, is_wide
from .types import WORD
from .values import FLOAT32, UINT32, DType, Value, part_lanes

_TO_FLOAT = {"int": Op.ConvertSToF, "uint": Op.ConvertUToF}
_FROM_FLOAT = {"int": Op.ConvertFToS, "uint": Op.ConvertFToU}
_EXTEND = {"int": Op.SConvert, "uint": Op.UConvert}
_BYTES_OF_WORD = 4


def memory_type(dtype: DType) -> DType:
    """Return the type as which elements of a buffer lie in memory.

    Four bytes are a word, so that they need no ability; a bool is a byte.
    """
    kind, bits, lanes = dtype
    if kind == "bool":
        return DType("uint", 8, lanes)
    if kind == "bfloat":
        return DType("uint", bits, lanes)
    if dtype.is_integer and bits == 8 and lanes % _BYTES_OF_WORD == 0:
        return UINT32.of(lanes // _BYTES_OF_WORD)
    return DType("uint", bits, lanes) if dtype.is_integer else dtype


class Conversions:
    """Writes conversions into a module.

    Parameters
    ----------
    arithmetic : Arithmetic
        Of the module.

    Attributes
    ----------
    bits : Bits
        Writes reinterpretations.
    """

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic, self.types, self.bits = arithmetic, arithmetic.types, Bits(arithmetic)

    # Casts

    def cast(self, value: Value, dtype: DType) -> Value:
        """Return a value in another type of as many lanes, as C converts it.

        Floats to integers are truncated, integers to narrower ones wrap around, and floats to
        narrower ones are rounded to nearest.
        """
        source, sums = value.dtype, self.arithmetic
        if source == dtype:
            return value
        if dtype.kind == "bool":
            return sums.not_equal(value, sums.constant(source, 0))
        if source.kind == "bool":
            return sums.select(value, sums.constant(dtype, 1), sums.constant(dtype, 0))
        if isinstance(sums, PairArithmetic) and (is_wide(source) or is_wide(dtype)):
            return self._pair(sums, value, dtype)
        if source.is_integer and dtype.is_integer:
            return self._integer(value, dtype)
        if source.is_integer:
            return self.rounded(sums.apply(_TO_FLOAT[source.kind], dtype, value))
        if dtype.is_integer:
            return sums.wrap(sums.apply(_FROM_FLOAT[dtype.kind], dtype, value))
        if self.types.held(source) == self.types.held(dtype):
            return self.rounded(Value(dtype, value.parts))
        return self.rounded(sums.apply(Op.FConvert, dtype, value))

    def _integer(self, value: Value, dtype: DType) -> Value:
        source = value.dtype
        before, after = self.types.held(source).bits, self.types.held(dtype).bits
        if before < after:
            return self.arithmetic.apply(_EXTEND[source.kind], dtype, value)
        if before > after:
            return self.arithmetic.wrap(self.arithmetic.apply(Op.UConvert, dtype, value))
        result = Value(dtype, value.parts)
        inside = source.kind == dtype.kind or source.kind == "uint"
        fits = source.bits < dtype.bits and (inside or dtype.bits >= WORD)
        return result if fits else self.arithmetic.wrap(result)

    def _pair(self, sums: PairArithmetic, value: Value, dtype: DType) -> Value:
        """Cast from or to a 64-bit integer that is a pair of words."""
        source = value.dtype
        if is_wide(source) and is_wide(dtype):
            return Value(dtype, value.parts)
        if is_wide(source):
            narrow = sums.low(value) if dtype.is_integer else sums.to_float(value)
            return self.cast(narrow, dtype)
        if source.is_integer:
            return sums.from_word(value, dtype)
        return sums.from_float(self.cast(value, FLOAT32), dtype)

    def rounded(self, value: Value) -> Value:
        """Return a float that is held in more digits than its type has, rounded to those."""
        if not value.dtype.is_float or value.dtype.bits >= self.types.held(value.dtype).bits:
            return value
        return self.bits.half(self.bits.half_bits(value), value.dtype)

    # Registers and memory

    def from_memory(self, value: Value, dtype: DType) -> Value:
        """Return an element of :func:`memory_type` in registers."""
        stored, sums = value.dtype, self.arithmetic
        if stored.lanes != dtype.lanes:
            return self.bits.unpack(value, dtype)
        if dtype.bits >= WORD:
            return Value(dtype, value.parts)
        if dtype.kind == "float":
            if self.types.held(dtype).bits == dtype.bits:
                return Value(dtype, value.parts)
            return sums.apply(Op.FConvert, dtype, value)
        if dtype.is_integer:
            return sums.apply(_EXTEND[dtype.kind], dtype, value)
        wide = sums.apply(Op.UConvert, UINT32.of(dtype.lanes), value)
        return self.cast(wide, dtype) if dtype.kind == "bool" else self.bits.half(wide, dtype)

    def to_memory(self, value: Value, storage: StorageClass) -> Value:
        """Return a value as an element of :func:`memory_type`, to be stored at once."""
        dtype = value.dtype
        stored = memory_type(dtype)
        if stored.lanes != dtype.lanes:
            return self.bits.pack(value)
        native = dtype.kind == "float" and self.types.held(dtype).bits == dtype.bits
        if dtype.bits >= WORD or native:
            return Value(stored, value.parts)
        if dtype.kind == "bfloat":
            value = self.bits.half_bits(value)
        elif dtype.kind == "bool":
            value = self.cast(value, UINT32.of(dtype.lanes))
        kind = self.types.memory(stored.of(part_lanes(dtype.lanes)), storage)
        op = Op.FConvert if dtype.kind == "float" else Op.UConvert
        narrow = [self.arithmetic.builder.pure(op, kind, part) for part in value.parts]
        return Value(stored, tuple(narrow))

    def from_argument(self, words: int, dtype: DType) -> Value:
        """Return a scalar argument, of which the low bits of some words are the value.

        Parameters
        ----------
        words : int
            A word, or a vector of two for what has 64 bits.
        """
        held = Value(UINT32.of(2 if dtype.bits > WORD else 1), (words,))
        if dtype.kind == "bool":
            low = self.arithmetic.constant(UINT32, 0xFF)
            return self.cast(self.arithmetic.bitwise(Op.BitwiseAnd, held, low), dtype)
        return self.bits.from_words(held, dtype)
