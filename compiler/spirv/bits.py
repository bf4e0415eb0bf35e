"""The bits of values as values of other types."""

from __future__ import annotations

from .arithmetic import Arithmetic
from .grammar import Glsl, Op
from .types import WORD
from .values import FLOAT32, UINT32, DType, Value

_EXTRACT = {"int": Op.BitFieldSExtract, "uint": Op.BitFieldUExtract}
_HALF = 16


class Bits:
    """Writes reinterpretations into a module.

    Parameters
    ----------
    arithmetic : Arithmetic
        Of the module.
    """

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic, self.types = arithmetic, arithmetic.types

    def reinterpret(self, value: Value, dtype: DType) -> Value | None:
        """Return the bits of a value as another type of as many bits; None where they differ."""
        source = value.dtype
        as_many = source.bits * source.lanes == dtype.bits * dtype.lanes
        if not as_many or "bool" in (source.kind, dtype.kind):
            return None
        if source.bits == dtype.bits and source.is_integer and dtype.is_integer:
            return self.arithmetic.wrap(Value(dtype, value.parts))
        return self.from_words(self.words(value), dtype)

    def words(self, value: Value) -> Value:
        """Return the bits of a value as words; what is narrower than one, in its low bits."""
        source = value.dtype
        if source.bits == WORD:
            return self._cast(UINT32.of(source.lanes), value)
        if source.bits > WORD:
            return self._split(value)
        return self.pack(self.half_bits(value) if source.is_float else value)

    def from_words(self, words: Value, dtype: DType) -> Value:
        """Return what :meth:`words` turns into these words."""
        if dtype.bits == WORD:
            return self._cast(dtype, words)
        if dtype.bits > WORD:
            return self._join(words, dtype)
        if dtype.is_float:
            return self.half(self.unpack(words, DType("uint", _HALF, dtype.lanes)), dtype)
        return self.unpack(words, dtype)

    def _cast(self, dtype: DType, value: Value) -> Value:
        if dtype.is_integer and value.dtype.is_integer:
            return Value(dtype, value.parts)
        return self.arithmetic.apply(Op.Bitcast, dtype, value)

    # 64 bits are two words

    def _split(self, value: Value) -> Value:
        """Return 64-bit lanes as twice as many words, the low one first."""
        if self.types.held(value.dtype).bits == WORD:
            return Value(UINT32.of(2), value.parts)
        pair, pure = self.types.register(UINT32, 2), self.arithmetic.builder.pure
        halves = [
            Value(UINT32.of(2), (pure(Op.Bitcast, pair, lane),))
            for lane in self.arithmetic.lanes(value)
        ]
        words = [word for half in halves for word in self.arithmetic.lanes(half)]
        return self.arithmetic.vector(UINT32, words)

    def _join(self, words: Value, dtype: DType) -> Value:
        """Return the 64-bit lanes of twice as many words."""
        if self.types.held(dtype).bits == WORD:
            return Value(dtype, words.parts)
        lanes, kind = self.arithmetic.lanes(words), self.types.register(dtype, 1)
        pairs = [self.arithmetic.vector(UINT32, lanes[i : i + 2]) for i in range(0, len(lanes), 2)]
        pure = self.arithmetic.builder.pure
        joined = [pure(Op.Bitcast, kind, pair.id) for pair in pairs]
        return self.arithmetic.vector(dtype.scalar, joined)

    # Narrow integers are parts of a word

    def pack(self, value: Value) -> Value:
        """Return narrow integers as words, the first lane in the lowest bits."""
        bits, per_word = value.dtype.bits, WORD // value.dtype.bits
        lanes = self.arithmetic.lanes(value)
        groups = [lanes[i : i + per_word] for i in range(0, len(lanes), per_word)]
        return self.arithmetic.vector(UINT32, [self._word(group, bits) for group in groups])

    def _word(self, lanes: list[int], bits: int) -> int:
        """Return a word of some lanes, of which each has its bits above those of the last."""
        first = Value(UINT32, (lanes[0],))
        if len(lanes) == 1:
            return self.arithmetic.bits(Op.BitFieldUExtract, first, 0, bits).id
        word, number = first.id, self.arithmetic.word
        for i, lane in enumerate(lanes[1:], start=1):
            field = (number(i * bits), number(bits))
            word = self.arithmetic.builder.pure(
                Op.BitFieldInsert, self.types.word, word, lane, *field
            )
        return word

    def unpack(self, words: Value, dtype: DType) -> Value:
        """Return the narrow integers in words, extended."""
        made: list[int] = []
        for word in self.arithmetic.lanes(words):
            held = Value(UINT32, (word,))
            for i in range(min(WORD // dtype.bits, dtype.lanes - len(made))):
                field = (i * dtype.bits, dtype.bits)
                made.append(self.arithmetic.bits(_EXTRACT[dtype.kind], held, *field).id)
        return self.arithmetic.vector(dtype.scalar, made)

    # Floats of 16 bits

    def half_bits(self, value: Value) -> Value:
        """Return the bits of 16-bit floats, or of float32s rounded to one, half to even."""
        dtype = value.dtype
        bits = DType("uint", _HALF, dtype.lanes)
        if dtype.kind == "bfloat":
            words = self._bfloat_bits(Value(FLOAT32.of(dtype.lanes), value.parts))
            return Value(bits, words.parts)
        wide = Value(FLOAT32.of(dtype.lanes), value.parts)
        if self.types.held(dtype) != wide.dtype:
            wide = self.arithmetic.apply(Op.FConvert, wide.dtype, value)
        zero, glsl = self.arithmetic.float32(0.0).id, self.arithmetic.builder.glsl
        pairs = [
            self.arithmetic.vector(FLOAT32, [lane, zero]) for lane in self.arithmetic.lanes(wide)
        ]
        packed = [glsl(Glsl.PackHalf2x16, self.types.word, pair.id) for pair in pairs]
        return Value(bits, self.arithmetic.vector(UINT32, packed).parts)

    def half(self, bits16: Value, dtype: DType) -> Value:
        """Return the 16-bit floats of some bits."""
        if dtype.kind == "bfloat":
            words = Value(UINT32.of(dtype.lanes), bits16.parts)
            wide = self.arithmetic.shift_left(words, self.arithmetic.constant(words.dtype, _HALF))
            return self.arithmetic.apply(Op.Bitcast, dtype, wide)
        wide = self._widened(Value(UINT32.of(dtype.lanes), bits16.parts))
        if self.types.held(dtype) == wide.dtype:
            return Value(dtype, wide.parts)
        return self.arithmetic.apply(Op.FConvert, dtype, wide)

    def _widened(self, bits16: Value) -> Value:
        """Return the float32s that are as large as 16-bit floats of some bits.

        GLSL's unpackHalf2x16 may take what is below 2^-14 for zero.
        """
        sums, words = self.arithmetic, bits16.dtype
        floats = FLOAT32.of(words.lanes)

        def number(value: int) -> Value:
            return sums.constant(words, value)

        magnitude = sums.bitwise(Op.BitwiseAnd, bits16, number(0x7FFF))
        digits = sums.shift_left(magnitude, number(13))
        normal = sums.add(digits, number(0x38000000))
        special = sums.bitwise(Op.BitwiseOr, digits, number(0x7F800000))
        counted = sums.apply(Op.ConvertUToF, floats, magnitude)
        small = sums.multiply(counted, sums.constant(floats, 2.0**-24))
        small = sums.apply(Op.Bitcast, words, small)
        found = sums.select(sums.less(magnitude, number(0x7C00)), normal, special)
        found = sums.select(sums.less(magnitude, number(0x400)), small, found)
        sign = sums.shift_left(sums.bitwise(Op.BitwiseAnd, bits16, number(0x8000)), number(16))
        return sums.apply(Op.Bitcast, floats, sums.bitwise(Op.BitwiseOr, found, sign))

    def _bfloat_bits(self, value: Value) -> Value:
        """Return the bits of float32s rounded to bfloat16, half to even; NaN stays NaN."""
        sums, words = self.arithmetic, UINT32.of(value.dtype.lanes)

        def number(value: int) -> Value:
            return sums.constant(words, value)

        bits = sums.apply(Op.Bitcast, words, value)
        odd = sums.bitwise(Op.BitwiseAnd, sums.shift_right(bits, number(_HALF)), number(1))
        rounded = sums.add(bits, sums.add(odd, number(0x7FFF)))
        magnitude = sums.bitwise(Op.BitwiseAnd, bits, number(0x7FFFFFFF))
        nan = sums.less(number(0x7F800000), magnitude)
        quiet = sums.bitwise(Op.BitwiseOr, bits, number(0x400000))
        return sums.shift_right(sums.select(nan, quiet, rounded), number(_HALF))
