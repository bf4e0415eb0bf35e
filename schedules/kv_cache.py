"""The formats of a cache of keys and values, as every target's rules see them.

`models/kernels/kv_cache.py` says what they are. What is here is for scalars and for vectors alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .tir import Buffer, Expr, bind, lanes_of, splat

LEVELS = 127.0
SMALLEST = 1e-12
"""The least scale of an int8 key or value."""
BIAS = 2.0**112
"""What a float16 whose exponent and mantissa stand in a float32's places is too small by."""


@dataclass(frozen=True)
class CacheFormat:
    """How a cache is stored: elements of a 32-bit word, and whether there are scales."""

    per_word: int
    scaled: bool

    @classmethod
    def of(cls, cache: Sequence[Buffer]) -> CacheFormat:
        """Return the format of a cache of these buffers: keys, values, and scales of them."""
        if str(cache[0].dtype) == "float32":
            return cls(1, False)
        return cls(4, True) if len(cache) > 2 else cls(2, False)


def half_bits(words: Expr, place: int) -> Expr:
    """Return the float16 at a place of words as a float32's bits, too small by :data:`BIAS`."""
    if place:
        return ((words >> _int(3, words)) & _int(0x7FFF << 13, words)) | (
            words & _int(-(1 << 31), words)
        )
    return ((words & _int(0x7FFF, words)) << _int(13, words)) | (
        (words << _int(16, words)) & _int(-(1 << 31), words)
    )


def code(words: Expr, place: int) -> Expr:
    """Return the code at a place of words, int32."""
    if place < 3:
        words = words << _int(24 - 8 * place, words)
    return words >> _int(24, words)


def to_half(bits: Expr) -> Expr:
    """Return the bits of the float16 nearest to a float32 of some bits: zero below 2^-14."""
    most, least = _int(0x477FE000, bits), _int(1 << 10, bits)
    magnitude = bind(tirx.min(bits & _int(0x7FFFFFFF, bits), most))
    odd = (magnitude >> _int(13, bits)) & _int(1, bits)
    rounded = (magnitude + _int(0xFFF, bits) + odd) >> _int(13, bits)
    number = bind(tirx.max(rounded - _int(112 << 10, bits), _int(0, bits)))
    sign = (bits >> _int(16, bits)) & _int(0x8000, bits)
    return sign | T.Select(number < least, _int(0, bits), number)


def joined(codes: Sequence[Expr]) -> Expr:
    """Return words of int32 codes or halves that hold nothing above their own bits."""
    found = codes[0]
    for place, each in enumerate(codes[1:], 1):
        found = found | (each << _int(place * 32 // len(codes), each))
    return found


def _int(number: int, like: Expr) -> Expr:
    return splat(tirx.const(number, "int32"), lanes_of(like))
