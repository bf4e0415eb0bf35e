"""AdamW's moments in fewer bits, as every target's rules see them.

`models/kernels/moments.py` says what the formats are. Everything here is for scalars and for
vectors alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .tir import Expr, bind, lanes_of, splat

BLOCK = 256
"""Elements that share a magnitude."""
ONE = 0x3F8
"""The bits of 1.0 from the 20th on."""
LARGEST = (127, 255)
"""The codes of 1.0 of the first moment, beside its sign, and of the second."""
TINY = 1e-38
"""What divides a block of zeros."""


def has_codes(parameters: dict[str, Any]) -> bool:
    """Return whether moments are codes of 8 bits; else they are floats of 16."""
    return str(parameters["moments"]) == "int8"


def _int(number: int, lanes: int) -> Expr:
    return splat(tirx.const(number, "int32"), lanes)


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def from_half(bits: Expr) -> Expr:
    """Return the float32 of a 16-bit float, given in the lower half of int32 lanes."""
    lanes = lanes_of(bits)
    return T.reinterpret(_typed("float32", lanes), bits << _int(16, lanes))


def from_code(code: Expr, which: int, top: Expr) -> Expr:
    """Return the float32 of a code 0 .. 255 of a moment, in a block of largest magnitude `top`."""
    lanes, most = lanes_of(code), LARGEST[which]
    code = bind(code)
    plain = bind(code & _int(most, lanes))
    bits = (plain + _int(ONE - most, lanes)) << _int(20, lanes)
    if which == 0:
        bits = bits | ((code & _int(255 - most, lanes)) << _int(24, lanes))
    value = T.reinterpret(_typed("float32", lanes), bits) * splat(top, lanes)
    return bind(T.Select(plain == _int(0, lanes), splat(0.0, lanes), value))


def random_bits(
    moments: tuple[Expr, Expr], place: Expr, correction: Expr, mixed: Callable[[Expr], Expr]
) -> tuple[Expr, Expr]:
    """Return 16 random bits for the rounding of each moment, int32.

    `place` is uint32, `correction` the step's float32, and `mixed` hashes uint32 lanes.
    """
    lanes = lanes_of(place)
    kind = _typed("uint32", lanes)
    first, second = (T.reinterpret(kind, bind(value)) for value in moments)
    step = splat(T.reinterpret("uint32", bind(correction)), lanes)
    one, sixteen = (splat(tirx.const(c, "uint32"), lanes) for c in (1, 16))
    hashed = mixed(bind(first ^ (second << one) ^ step ^ place))
    low = T.cast(hashed, _typed("int32", lanes)) & _int(0xFFFF, lanes)
    return bind(low), bind(T.cast(hashed >> sixteen, _typed("int32", lanes)))


def to_half(value: Expr, random: Expr) -> Expr:
    """Return a float32 rounded to 16 bits, in the lower half of int32 lanes."""
    lanes = lanes_of(value)
    bits = T.reinterpret(_typed("int32", lanes), bind(value)) + random
    return bind((bits >> _int(16, lanes)) & _int(0xFFFF, lanes))


def to_code(value: Expr, which: int, top: Expr, random: Expr) -> Expr:
    """Return the code 0 .. 255 of a moment, int32 lanes; `top` is at least :data:`TINY`."""
    lanes, most = lanes_of(value), LARGEST[which]
    ratio = bind(tirx.abs(value) / splat(top, lanes))
    bits = T.reinterpret(_typed("int32", lanes), ratio) + (random << _int(4, lanes))
    code = bind((bits >> _int(20, lanes)) - _int(ONE - most, lanes))
    code = tirx.max(code, _int(0, lanes))
    if which == 1:
        return bind(code)
    negative = (T.reinterpret(_typed("int32", lanes), value) >> _int(24, lanes)) & _int(128, lanes)
    return bind(code | negative)
