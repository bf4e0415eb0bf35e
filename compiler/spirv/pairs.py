"""64-bit integers as pairs of words, for devices that do not compute in them.

A pair is a vector of two words, the low one first. There are no vectors of pairs.
"""

from __future__ import annotations

from .arithmetic import Arithmetic
from .grammar import Op
from .types import WORD
from .values import FLOAT32, INT32, UINT32, DType, Value

WIDE = 2 * WORD
_TWO_TO_32 = 2.0**32


def is_wide(dtype: DType) -> bool:
    """Tell whether a type is a 64-bit integer."""
    return dtype.is_integer and dtype.bits == WIDE


class PairArithmetic(Arithmetic):
    """Arithmetic in which 64-bit integers are pairs of words; see :class:`Arithmetic`."""

    # Words and pairs

    def pair(self, dtype: DType, low: Value, high: Value) -> Value:
        """Return a 64-bit integer of two words."""
        kind = self.types.register(dtype, 1)
        return Value(dtype, (self._construct_of(kind, (low.id, high.id)),))

    def low(self, value: Value) -> Value:
        """Return the low word of a 64-bit integer."""
        return self._half(value, 0)

    def high(self, value: Value) -> Value:
        """Return the high word of a 64-bit integer."""
        return self._half(value, 1)

    def _half(self, value: Value, index: int) -> Value:
        word = self.builder.pure(Op.CompositeExtract, self.types.word, value.id, index)
        return Value(UINT32, (word,))

    def _word(self, number: int) -> Value:
        return self.constant(UINT32, number)

    def index(self, value: Value) -> Value:
        """Return the low word: no buffer has more elements than 32 bits count."""
        return self.low(value) if is_wide(value.dtype) else value

    def constant(self, dtype: DType, number: float) -> Value:
        """Return a number."""
        if not is_wide(dtype):
            return super().constant(dtype, number)
        words = [int(number) >> shift & 0xFFFFFFFF for shift in (0, WORD)]
        return self.pair(dtype, *[self._word(word) for word in words])

    # TIR's operators

    def add(self, a: Value, b: Value) -> Value:
        """Return the sum."""
        if not is_wide(a.dtype):
            return super().add(a, b)
        low = super().add(self.low(a), self.low(b))
        carry = self._flag(self.less(low, self.low(a)))
        high = super().add(super().add(self.high(a), self.high(b)), carry)
        return self.pair(a.dtype, low, high)

    def subtract(self, a: Value, b: Value) -> Value:
        """Return the difference."""
        if not is_wide(a.dtype):
            return super().subtract(a, b)
        low = super().subtract(self.low(a), self.low(b))
        borrow = self._flag(self.less(self.low(a), self.low(b)))
        high = super().subtract(super().subtract(self.high(a), self.high(b)), borrow)
        return self.pair(a.dtype, low, high)

    def _flag(self, condition: Value) -> Value:
        return super().select(condition, self._word(1), self._word(0))

    def multiply(self, a: Value, b: Value) -> Value:
        """Return the product."""
        if not is_wide(a.dtype):
            return super().multiply(a, b)
        word, builder = self.types.word, self.builder
        kind = builder.declare_type(Op.TypeStruct, word, word)
        whole = builder.pure(Op.UMulExtended, kind, self.low(a).id, self.low(b).id)
        low, high = (
            Value(UINT32, (builder.pure(Op.CompositeExtract, word, whole, i),)) for i in range(2)
        )
        for left, right in ((self.low(a), self.high(b)), (self.high(a), self.low(b))):
            high = super().add(high, super().multiply(left, right))
        return self.pair(a.dtype, low, high)

    def divide(self, a: Value, b: Value) -> Value:
        """Return the quotient; an integer's is truncated."""
        if not is_wide(a.dtype):
            return super().divide(a, b)
        quotient = self._quotient(self.absolute(a), self.absolute(b))
        if a.dtype.kind == "uint":
            return quotient
        differ = self.less(self.bitwise(Op.BitwiseXor, a, b), self.constant(a.dtype, 0))
        return self.select(differ, self.negate(quotient), quotient)

    def remainder(self, a: Value, b: Value) -> Value:
        """Return what the truncated quotient leaves."""
        if not is_wide(a.dtype):
            return super().remainder(a, b)
        return self.subtract(a, self.multiply(self.divide(a, b), b))

    def minimum(self, a: Value, b: Value) -> Value:
        """Return the smaller one."""
        if not is_wide(a.dtype):
            return super().minimum(a, b)
        return self.select(self.less(a, b), a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        """Return the larger one."""
        if not is_wide(a.dtype):
            return super().maximum(a, b)
        return self.select(self.less(a, b), b, a)

    def negate(self, a: Value) -> Value:
        """Return the negative."""
        if not is_wide(a.dtype):
            return super().negate(a)
        return self.subtract(self.constant(a.dtype, 0), a)

    def absolute(self, a: Value) -> Value:
        """Return the magnitude."""
        if a.dtype.kind != "int" or not is_wide(a.dtype):
            return super().absolute(a)
        return self.select(self.less(a, self.constant(a.dtype, 0)), self.negate(a), a)

    def less(self, a: Value, b: Value) -> Value:
        """Tell whether ``a < b``."""
        if not is_wide(a.dtype):
            return super().less(a, b)
        kind = DType(a.dtype.kind, WORD)
        highs = [Value(kind, self.high(side).parts) for side in (a, b)]
        same = super().equal(*highs)
        below = self.both(same, super().less(self.low(a), self.low(b)))
        return self.either(super().less(*highs), below)

    def less_equal(self, a: Value, b: Value) -> Value:
        """Tell whether ``a <= b``."""
        if not is_wide(a.dtype):
            return super().less_equal(a, b)
        return self.negation(self.less(b, a))

    def equal(self, a: Value, b: Value) -> Value:
        """Tell whether ``a == b``."""
        if not is_wide(a.dtype):
            return super().equal(a, b)
        low = super().equal(self.low(a), self.low(b))
        return self.both(low, super().equal(self.high(a), self.high(b)))

    def not_equal(self, a: Value, b: Value) -> Value:
        """Tell whether ``a != b``."""
        if not is_wide(a.dtype):
            return super().not_equal(a, b)
        return self.negation(self.equal(a, b))

    def select(self, condition: Value, then: Value, otherwise: Value) -> Value:
        """Return `then` where the condition holds."""
        if not is_wide(then.dtype):
            return super().select(condition, then, otherwise)
        halves = [
            super(PairArithmetic, self).select(condition, half(then), half(otherwise))
            for half in (self.low, self.high)
        ]
        return self.pair(then.dtype, *halves)

    def shift_left(self, a: Value, b: Value) -> Value:
        """Return ``a << b``."""
        if not is_wide(a.dtype):
            return super().shift_left(a, b)
        far, near = self._distance(b)
        low = super().shift_left(self.low(a), near)
        halved = super().shift_right(self.low(a), self._word(1))
        across = super().shift_right(halved, self._rest(near))
        high = self.bitwise(Op.BitwiseOr, super().shift_left(self.high(a), near), across)
        zero = self._word(0)
        return self.pair(a.dtype, self.select(far, zero, low), self.select(far, low, high))

    def shift_right(self, a: Value, b: Value) -> Value:
        """Return ``a >> b``, which keeps the sign of what has one."""
        if not is_wide(a.dtype):
            return super().shift_right(a, b)
        far, near = self._distance(b)
        top = Value(DType(a.dtype.kind, WORD), self.high(a).parts)
        high = Value(UINT32, super().shift_right(top, near).parts)
        across = super().shift_left(
            super().shift_left(self.high(a), self._word(1)), self._rest(near)
        )
        low = self.bitwise(Op.BitwiseOr, super().shift_right(self.low(a), near), across)
        sign = Value(UINT32, super().shift_right(top, self.constant(top.dtype, WORD - 1)).parts)
        fill = sign if a.dtype.kind == "int" else self._word(0)
        return self.pair(a.dtype, self.select(far, high, low), self.select(far, fill, high))

    def _distance(self, b: Value) -> tuple[Value, Value]:
        """Return whether a shift is by a word or more, and how far beyond."""
        count = self.low(b) if is_wide(b.dtype) else Value(UINT32, b.parts)
        far = super().less(self._word(WORD - 1), count)
        return far, self.bitwise(Op.BitwiseAnd, count, self._word(WORD - 1))

    def _rest(self, near: Value) -> Value:
        return super().subtract(self._word(WORD - 1), near)

    # Division

    def _quotient(self, a: Value, b: Value) -> Value:
        """Return the quotient of magnitudes: of words at once, of others bit by bit."""
        zero = self._word(0)
        wide = self.bitwise(Op.BitwiseOr, self.high(a), self.high(b))
        builder, kind = self.builder, self.types.register(a.dtype, 1)
        long, short, merge = builder.new_id(), builder.new_id(), builder.new_id()
        builder.branch_if(self.not_equal(wide, zero).id, long, short, merge)
        with builder.scope():
            builder.begin(long)
            slow = self._long_division(a, b), builder.block
            builder.branch(merge)
        with builder.scope():
            builder.begin(short)
            quick = self.pair(a.dtype, super().divide(self.low(a), self.low(b)), zero)
            fast = quick.id, builder.block
            builder.branch(merge)
        builder.begin(merge)
        return Value(a.dtype, (builder.phi(kind, slow, fast),))

    def _long_division(self, a: Value, b: Value) -> int:
        """Return the quotient, which grows where the dividend's bits leave."""
        builder, unsigned = self.builder, DType("uint", WIDE)
        kind, word = self.types.register(a.dtype, 1), self.types.word
        head, body, proceed, merge = (builder.new_id() for _ in range(4))
        following = [builder.new_id() for _ in range(3)]
        zero, start = self.constant(unsigned, 0), builder.block
        first = (self._word(0), a, zero)
        builder.branch(head)
        with builder.scope():
            builder.begin(head)
            turn, quotient, rest = (
                builder.phi(word if i == 0 else kind, (value.id, start), (following[i], proceed))
                for i, value in enumerate(first)
            )
            builder.loop(merge, proceed)
            builder.branch(body)
            builder.begin(body)
            more = self.less(Value(UINT32, (turn,)), self._word(WIDE))
            builder.effect(Op.BranchConditional, more.id, proceed, merge)
            builder.begin(proceed)
            results = self._division_step(Value(unsigned, (quotient,)), Value(unsigned, (rest,)), b)
            next_turn = super().add(Value(UINT32, (turn,)), self._word(1))
            for value, result in zip((next_turn, *results), following, strict=True):
                builder.define(
                    Op.CopyObject, word if value is next_turn else kind, result, value.id
                )
            builder.branch(head)
        builder.begin(merge)
        return quotient

    def _division_step(self, quotient: Value, rest: Value, b: Value) -> tuple[Value, Value]:
        dtype = quotient.dtype
        one, zero = self.constant(dtype, 1), self.constant(dtype, 0)
        divisor = Value(dtype, b.parts)
        top = self.shift_right(quotient, self.constant(dtype, WIDE - 1))
        grown = self.bitwise(Op.BitwiseOr, self.shift_left(rest, one), top)
        fits = self.less_equal(divisor, grown)
        left = self.select(fits, self.subtract(grown, divisor), grown)
        bit = self.select(fits, one, zero)
        return self.bitwise(Op.BitwiseOr, self.shift_left(quotient, one), bit), left

    # Casts

    def from_word(self, value: Value, dtype: DType) -> Value:
        """Return an integer of up to 32 bits as a 64-bit one."""
        low = Value(UINT32, value.parts)
        if value.dtype.kind == "uint":
            return self.pair(dtype, low, self._word(0))
        signed = Value(INT32, value.parts)
        sign = super().shift_right(signed, self.constant(INT32, WORD - 1))
        return self.pair(dtype, low, Value(UINT32, sign.parts))

    def to_float(self, value: Value) -> Value:
        """Return a 64-bit integer as a float32, rounded at most three times."""
        size = self.absolute(value)
        high, low = (
            self.apply(Op.ConvertUToF, FLOAT32, half) for half in (self.high(size), self.low(size))
        )
        total = self.add(self.multiply(high, self.float32(_TWO_TO_32)), low)
        if value.dtype.kind == "uint":
            return total
        below = self.less(value, self.constant(value.dtype, 0))
        return self.select(below, self.negate(total), total)

    def from_float(self, value: Value, dtype: DType) -> Value:
        """Return a float32 as a 64-bit integer, truncated."""
        size = self.absolute(value)
        scaled = self.multiply(size, self.float32(1 / _TWO_TO_32))
        high = self.apply(Op.ConvertFToU, UINT32, scaled)
        upper = self.multiply(self.apply(Op.ConvertUToF, FLOAT32, high), self.float32(_TWO_TO_32))
        low = self.apply(Op.ConvertFToU, UINT32, self.subtract(size, upper))
        whole = self.pair(dtype, low, high)
        below = self.less(value, self.float32(0.0))
        return self.select(below, self.negate(whole), whole)
