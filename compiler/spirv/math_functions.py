"""Mathematical functions, with the semantics that the processor's code has.

Where the comment of a function says nothing its precision is what Vulkan promises of GLSL.std.450
(Vulkan specification, "Precision and operation of SPIR-V instructions"). ``round`` and
``nearbyint`` are both half to even, as in TVM's code for processors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .arithmetic import Arithmetic
from .context import Context
from .grammar import Decoration, Glsl, Op
from .types import WORD
from .values import FLOAT32, INT32, UINT32, DType, Value

_DIRECT = {
    "acos": Glsl.Acos,
    "acosh": Glsl.Acosh,
    "asin": Glsl.Asin,
    "asinh": Glsl.Asinh,
    "atan": Glsl.Atan,
    "atan2": Glsl.Atan2,
    "atanh": Glsl.Atanh,
    "ceil": Glsl.Ceil,
    "cos": Glsl.Cos,
    "cosh": Glsl.Cosh,
    "exp": Glsl.Exp,
    "exp2": Glsl.Exp2,
    "floor": Glsl.Floor,
    "log": Glsl.Log,
    "log2": Glsl.Log2,
    "nearbyint": Glsl.RoundEven,
    "rint": Glsl.RoundEven,
    "round": Glsl.RoundEven,
    "rsqrt": Glsl.InverseSqrt,
    "sin": Glsl.Sin,
    "sinh": Glsl.Sinh,
    "sqrt": Glsl.Sqrt,
    "tan": Glsl.Tan,
    "trunc": Glsl.Trunc,
}
_DOUBLES = {"ceil", "fabs", "floor", "nearbyint", "rint", "round", "rsqrt", "sqrt", "trunc"}
"""What there is for float64."""
_TANH_FLAT = 15.0
"""From here on tanh is 1 in float32; some drivers divide overflowing exponentials."""
_ERF_SERIES = (1.0, -1 / 3, 1 / 10, -1 / 42, 1 / 216, -1 / 1320)
_ERF_TAIL = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERF_T = 0.3275911


class MathFunctions:
    """Writes calls of mathematical functions.

    Parameters
    ----------
    context : Context
        The kernel's.
    """

    def __init__(self, context: Context) -> None:
        self.arithmetic: Arithmetic = context.arithmetic
        self.conversions = context.conversions
        self.refuse = context.refuse
        self._exact: set[int] = set()
        arithmetic = context.arithmetic
        self._table: dict[str, Callable[..., Value]] = {
            "abs": arithmetic.absolute,
            "clz": self._clz,
            "copysign": self._copysign,
            "ctpop": self._popcount,
            "erf": self._erf,
            "exp10": self._exp10,
            "fabs": arithmetic.absolute,
            "fma": self._fma,
            "fmax": arithmetic.maximum,
            "fmin": arithmetic.minimum,
            "fmod": arithmetic.remainder,
            "hypot": self._hypot,
            "isfinite": self._isfinite,
            "isinf": self._isinf,
            "isnan": self._isnan,
            "ldexp": self._ldexp,
            "log10": self._log10,
            "log1p": self._log1p,
            "mad": lambda a, b, c: arithmetic.add(arithmetic.multiply(a, b), c),
            "max": arithmetic.maximum,
            "min": arithmetic.minimum,
            "popcount": self._popcount,
            "pow": self._pow,
            "sigmoid": self._sigmoid,
            "tanh": self._tanh,
        }

    def knows(self, name: str) -> bool:
        """Tell whether there is a function of this name."""
        return name in _DIRECT or name in self._table

    def call(self, name: str, arguments: list[Value]) -> Value:
        """Return the result of a function that there is."""
        dtype = arguments[0].dtype
        if dtype.kind == "float" and dtype.bits > WORD and name not in _DOUBLES:
            raise self.refuse(f"{name} of {dtype}")
        if name in _DIRECT:
            result = self.arithmetic.glsl(_DIRECT[name], *arguments)
        else:
            result = self._table[name](*arguments)
        return self.conversions.rounded(result)

    def _like(self, value: Value, number: float) -> Value:
        return self.arithmetic.constant(value.dtype, number)

    def _polynomial(self, x: Value, coefficients: tuple[float, ...]) -> Value:
        """Return the sum of ``coefficients[i] x^i``."""
        total = self._like(x, coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            product = self.arithmetic.multiply(total, x)
            total = self.arithmetic.add(product, self._like(x, coefficient))
        return total

    def _tanh(self, x: Value) -> Value:
        flat = [self._like(x, bound) for bound in (-_TANH_FLAT, _TANH_FLAT)]
        return self.arithmetic.glsl(Glsl.Tanh, self.arithmetic.glsl(Glsl.FClamp, x, *flat))

    def _sigmoid(self, x: Value) -> Value:
        one = self._like(x, 1.0)
        exponential = self.arithmetic.glsl(Glsl.Exp, self.arithmetic.negate(x))
        return self.arithmetic.divide(one, self.arithmetic.add(one, exponential))

    def _exp10(self, x: Value) -> Value:
        scaled = self.arithmetic.multiply(x, self._like(x, math.log2(10)))
        return self.arithmetic.glsl(Glsl.Exp2, scaled)

    def _log10(self, x: Value) -> Value:
        logarithm = self.arithmetic.glsl(Glsl.Log2, x)
        return self.arithmetic.multiply(logarithm, self._like(x, math.log10(2)))

    def _log1p(self, x: Value) -> Value:
        """Return log(1 + x): Kahan's correction of the rounding of 1 + x."""
        sums, one = self.arithmetic, self._like(x, 1.0)
        near = sums.apply(Op.FAdd, x.dtype, one, x)
        if x.dtype == FLOAT32.of(x.dtype.lanes):
            near = self._exactly(Op.FAdd, one, x)
        step = sums.subtract(near, one)
        scaled = sums.divide(sums.multiply(sums.glsl(Glsl.Log, near), x), step)
        return sums.select(sums.equal(near, one), x, scaled)

    def _hypot(self, x: Value, y: Value) -> Value:
        sums = self.arithmetic
        squares = sums.add(sums.multiply(x, x), sums.multiply(y, y))
        return sums.glsl(Glsl.Sqrt, squares)

    def _erf(self, x: Value) -> Value:
        """Return the error function, to 2e-7 of 1.

        Its series up to 1/2, then Abramowitz and Stegun, "Handbook of Mathematical Functions",
        formula 7.1.26.
        """
        sums, size = self.arithmetic, self.arithmetic.absolute(x)
        square = sums.multiply(x, x)
        series = sums.multiply(x, self._polynomial(square, _ERF_SERIES))
        series = sums.multiply(series, self._like(x, 2 / math.sqrt(math.pi)))
        one = self._like(x, 1.0)
        t = sums.add(one, sums.multiply(size, self._like(x, _ERF_T)))
        t = sums.divide(one, t)
        tail = sums.multiply(t, self._polynomial(t, _ERF_TAIL))
        tail = sums.multiply(tail, sums.glsl(Glsl.Exp, sums.negate(square)))
        far = sums.subtract(one, tail)
        signed = sums.select(sums.less(x, self._like(x, 0.0)), sums.negate(far), far)
        return sums.select(sums.less(size, self._like(x, 0.5)), series, signed)

    def _pow(self, x: Value, y: Value) -> Value:
        """Return x to the power y, of negative x too where y is an integer."""
        sums, zero, one = self.arithmetic, self._like(x, 0.0), self._like(x, 1.0)
        size = sums.glsl(Glsl.Pow, sums.absolute(x), y)
        half = sums.multiply(y, self._like(y, 0.5))
        odd = sums.not_equal(sums.glsl(Glsl.Floor, half), half)
        whole = sums.equal(sums.glsl(Glsl.Floor, y), y)
        negative = sums.select(odd, sums.negate(size), size)
        negative = sums.select(whole, negative, self._like(x, math.nan))
        result = sums.select(sums.less(x, zero), negative, size)
        # Pow(0, y) is undefined for y <= 0.
        at_zero = sums.select(sums.less(zero, y), zero, self._like(x, math.inf))
        result = sums.select(sums.equal(x, zero), at_zero, result)
        return sums.select(sums.equal(y, zero), one, result)

    def _fma(self, a: Value, b: Value, c: Value) -> Value:
        if a.dtype.kind == "float" and a.dtype.bits == WORD:
            return self._fused(a, b, c)
        return self.arithmetic.glsl(Glsl.Fma, a, b, c)

    def _fused(self, a: Value, b: Value, c: Value) -> Value:
        """Return ``a b + c`` of float32, rounded once.

        GLSL.std.450's Fma may be a product and a sum. So the product's rounding error is computed,
        too (Dekker 1971, "A floating-point technique for extending the available precision", with
        Veltkamp's splitting), and added last. Exact where the product and `c` nearly cancel, as in
        Newton's steps; in general as good as rounding once but for rare ties. Above 2^60 and of
        what is not finite it is Fma's.
        """
        sums, product = self.arithmetic, self._exactly(Op.FMul, a, b)
        high_a, low_a = self._split(a)
        high_b, low_b = self._split(b)
        error = self._exactly(Op.FSub, self._exactly(Op.FMul, high_a, high_b), product)
        for left, right in ((high_a, low_b), (low_a, high_b), (low_a, low_b)):
            error = self._exactly(Op.FAdd, error, self._exactly(Op.FMul, left, right))
        total = self._exactly(Op.FAdd, product, c)
        # Knuth's sum gives the rounding error of the total, which the product's error joins.
        back = self._exactly(Op.FSub, total, product)
        rest = self._exactly(Op.FSub, product, self._exactly(Op.FSub, total, back))
        rest = self._exactly(Op.FAdd, rest, self._exactly(Op.FSub, c, back))
        exact = self._exactly(Op.FAdd, total, self._exactly(Op.FAdd, rest, error))
        bound = self._like(a, 2.0**60)
        largest = sums.maximum(sums.absolute(a), sums.absolute(b))
        largest = sums.maximum(largest, sums.absolute(c))
        return sums.select(sums.less(largest, bound), exact, sums.glsl(Glsl.Fma, a, b, c))

    def _split(self, a: Value) -> tuple[Value, Value]:
        """Return the upper half of a float32's digits and the lower."""
        scaled = self._exactly(Op.FMul, a, self._like(a, 4097.0))
        high = self._exactly(Op.FSub, scaled, self._exactly(Op.FSub, scaled, a))
        return high, self._exactly(Op.FSub, a, high)

    def _exactly(self, op: Op, *values: Value) -> Value:
        """Return a float32's sum, difference or product that is rounded for itself."""
        result = self.arithmetic.apply(op, values[0].dtype, *values)
        for part in result.parts:
            if part not in self._exact:
                self.arithmetic.builder.decorate(part, Decoration.NoContraction)
                self._exact.add(part)
        return result

    def _ldexp(self, x: Value, exponent: Value) -> Value:
        return self.arithmetic.glsl(Glsl.Ldexp, x, exponent)

    # Bits. A driver may assume that there is neither NaN nor infinity; bits don't lie.

    def _float_bits(self, x: Value) -> Value:
        """Return the bits of a float as it is held, as words."""
        if self.arithmetic.types.held(x.dtype).bits == WORD:
            x = Value(FLOAT32.of(x.dtype.lanes), x.parts)
        elif x.dtype.bits < WORD:
            x = self.conversions.cast(x, FLOAT32.of(x.dtype.lanes))
        else:
            raise self.refuse(f"the bits of {x.dtype}")
        return self.arithmetic.apply(Op.Bitcast, UINT32.of(x.dtype.lanes), x)

    def _magnitude(self, x: Value) -> Value:
        bits = self._float_bits(x)
        return self.arithmetic.bitwise(Op.BitwiseAnd, bits, self._like(bits, 0x7FFFFFFF))

    def _isnan(self, x: Value) -> Value:
        bits = self._magnitude(x)
        return self.arithmetic.less(self._like(bits, 0x7F800000), bits)

    def _isinf(self, x: Value) -> Value:
        bits = self._magnitude(x)
        return self.arithmetic.equal(bits, self._like(bits, 0x7F800000))

    def _isfinite(self, x: Value) -> Value:
        bits = self._magnitude(x)
        return self.arithmetic.less(bits, self._like(bits, 0x7F800000))

    def _copysign(self, x: Value, sign: Value) -> Value:
        sums, size = self.arithmetic, self.arithmetic.absolute(x)
        bits = self._float_bits(sign)
        negative = sums.less(self._like(bits, 0x7FFFFFFF), bits)
        return sums.select(negative, sums.negate(size), size)

    def _popcount(self, x: Value) -> Value:
        dtype = x.dtype
        if dtype.bits > WORD:
            raise self.refuse(f"popcount of {dtype}")
        # The extension of a narrow negative number is no part of it.
        bits = self.arithmetic.wrap(Value(DType("uint", dtype.bits, dtype.lanes), x.parts))
        return Value(dtype, self.arithmetic.apply(Op.BitCount, bits.dtype, bits).parts)

    def _clz(self, x: Value) -> Value:
        dtype = x.dtype
        if dtype.bits > WORD:
            raise self.refuse(f"clz of {dtype}")
        bits = self.arithmetic.wrap(Value(DType("uint", dtype.bits, dtype.lanes), x.parts))
        words = Value(INT32.of(dtype.lanes), bits.parts)
        highest = self.arithmetic.glsl(Glsl.FindUMsb, words)
        return self.arithmetic.subtract(self._like(words, dtype.bits - 1), highest)
