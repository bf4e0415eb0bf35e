"""Elementary functions of float32 vectors, built from arithmetic alone so that they vectorise."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, lanes_of, splat

ROUNDING = 1.5 * 2.0**23
"""Adding this to a float32 of magnitude below 2^22 rounds it to an integer, half to even."""
ROUNDING_BITS = 0x4B400000
LOG2_E = 1.44269504088896341
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
EXP_TAYLOR = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
EXP_LIMITS = (-87.3, 88.3)


def rounded(value: Expr) -> Expr:
    """Return the int32 lanes nearest to float32 lanes of magnitude below 2^22, half to even.

    The sum's low bits are the integer itself: cheaper than a conversion, and x86-64 without
    SSE 4.1 has no rounding instruction.
    """
    lanes = lanes_of(value)
    return _bits(value + splat(ROUNDING, lanes)) - _integer(ROUNDING_BITS, lanes)


def exp(value: Expr) -> Expr:
    """Return e^x of float32 lanes to about 1e-7 relative, x clamped to [-87.3, 88.3].

    With ``n = round(x / ln 2)`` and ``f = x - n ln 2`` (two constants, after Cody and Waite 1980)
    it is 2^n times the Taylor polynomial of degree 7 of e^f, ``|f| <= 0.347``.
    """
    lanes = lanes_of(value)

    def constant(number: float) -> Expr:
        return splat(float(number), lanes)

    low, high = EXP_LIMITS
    x = bind(tirx.min(tirx.max(value, constant(low)), constant(high)))
    power = bind(rounded(x * constant(LOG2_E)))
    n = bind(T.cast(power, _typed("float32", lanes)))
    f = bind(x - n * constant(LN2_HIGH) - n * constant(LN2_LOW))
    result = constant(EXP_TAYLOR[0])
    for coefficient in EXP_TAYLOR[1:]:
        result = result * f + constant(coefficient)
    exponent = (power + _integer(127, lanes)) << _integer(23, lanes)
    return result * T.reinterpret(_typed("float32", lanes), exponent)


def sigmoid(value: Expr) -> Expr:
    """Return 1 / (1 + e^-x) of float32 lanes."""
    one = splat(1.0, lanes_of(value))
    return one / (one + exp(splat(0.0, lanes_of(value)) - value))


def half_to_float(half: Expr, native: bool) -> Expr:
    """Return float16 lanes as float32, by the processor's instruction or else by integers.

    The integer way moves exponent and mantissa into a float32's place and corrects the bias with
    one exact multiplication; it is right for every finite number, subnormal ones included.
    """
    lanes = lanes_of(half)
    if native:
        return T.cast(half, _typed("float32", lanes))
    bits = bind(T.cast(T.reinterpret(_typed("uint16", lanes), half), _typed("int32", lanes)))
    sign = (bits & _integer(0x8000, lanes)) << _integer(16, lanes)
    magnitude = (bits & _integer(0x7FFF, lanes)) << _integer(13, lanes)
    scaled = T.reinterpret(_typed("float32", lanes), magnitude) * splat(2.0**112, lanes)
    return T.reinterpret(_typed("float32", lanes), _bits(scaled) | sign)


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _integer(number: int, lanes: int) -> Expr:
    return splat(tirx.const(number, "int32"), lanes)


def _bits(value: Expr) -> Expr:
    return T.reinterpret(_typed("int32", lanes_of(value)), value)
