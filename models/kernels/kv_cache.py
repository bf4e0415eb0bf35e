"""How a cache of keys and values is stored: float32, or 32-bit words of two or four elements.

- ``"f16"``: two float16 a word, the first lowest, rounded to the nearest, half to even. What lies
  below 2^-14 is zero, and what is above 65504 is that: so a word's bits are read by integers, with
  the same result on every device, whether it has 16-bit numbers or not.
- ``"int8"``: four codes a word, the first lowest. A key or value of a head is ``q * scale`` with
  ``scale = max |x| / 127`` of its own, after which ``q = round(x / scale)``.

A word holds neighbours along the head, so that a token's words are its own: tokens that are written
side by side never share one, and no device needs storage narrower than 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm import relax, tirx
from tvm.tirx.script.builder import ir as T

from .attention import AttentionShape

SMALLEST = 1e-12
"""The least scale of an int8 key or value; a zero has it."""
LEVELS = 127.0
Extent: TypeAlias = "int | tirx.Var"


@dataclass(frozen=True)
class CacheFormat:
    """A format of the cache.

    Attributes
    ----------
    name : str
        As options and manifests call it.
    per_word : int
        Elements of a head in a word.
    scaled : bool
        Whether a key or value has a scale.
    """

    name: str
    per_word: int
    scaled: bool

    @property
    def dtype(self) -> str:
        """The type of a word."""
        return "float32" if self.per_word == 1 else "int32"

    def fields(
        self, shape: AttentionShape, sequences: Extent, capacity: Extent
    ) -> dict[str, relax.TensorType]:
        """Return the tensors of a layer's cache of M positions by name.

        ``keys (S, Hkv, W, M)`` and ``values (S, Hkv, M, W)``, where W words hold a head; positions
        of keys are neighbours so that they are the lanes. Of int8 their scales, ``(S, Hkv, M)``
        float32.
        """
        words = shape.head_dim // self.per_word
        found: dict[str, tuple[tuple[Any, ...], str]] = {
            "keys": ((sequences, shape.kv_heads, words, capacity), self.dtype),
            "values": ((sequences, shape.kv_heads, capacity, words), self.dtype),
        }
        if self.scaled:
            for name in ("key_scales", "value_scales"):
                found[name] = ((sequences, shape.kv_heads, capacity), "float32")
        return {name: relax.TensorType(extents, kind) for name, (extents, kind) in found.items()}

    def pack(self, elements: Sequence[tirx.PrimExpr]) -> tirx.PrimExpr:
        """Return the word of elements, those of int8 already divided by their scale."""
        if self.per_word == 1:
            return elements[0]
        encode = _half if self.per_word == 2 else _code
        word = encode(elements[0])
        for place, element in enumerate(elements[1:], 1):
            word = word | (encode(element) << (place * 32 // self.per_word))
        return word

    def unpack(self, word: tirx.PrimExpr, place: Any) -> tirx.PrimExpr:
        """Return the element at a place of a word as float32, of int8 without its scale."""
        found = self._element(word, 0)
        for c in range(1, self.per_word):
            # A shift by an index would have the index's type.
            found = tirx.Select(place == c, self._element(word, c), found)
        return found

    def _element(self, word: tirx.PrimExpr, place: int) -> tirx.PrimExpr:
        if self.per_word == 1:
            return word
        if self.per_word == 4:
            return tirx.Cast("float32", (word << (24 - place * 8)) >> 24)
        bits = word >> (place * 16)
        bits = ((bits & 0x7FFF) << 13) | ((bits & 0x8000) << 16)
        # With exponent and mantissa in their places a number is too small by 2 to the 112.
        return tirx.reinterpret("float32", bits) * tirx.const(2.0**112, "float32")


def _code(value: tirx.PrimExpr) -> tirx.PrimExpr:
    return tirx.Cast("int32", tirx.nearbyint(value)) & 255


def _half(value: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return the bits of a float32 as the nearest float16."""
    bits = tirx.reinterpret("int32", value)
    magnitude = tirx.min(bits & 0x7FFFFFFF, tirx.const(0x477FE000, "int32"))
    rounded = (magnitude + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    # The exponent's bias is 15 instead of 127; below the least normal number there is zero.
    number = tirx.max(rounded - (112 << 10), 0)
    return ((bits >> 16) & 0x8000) | tirx.Select(number < 1 << 10, tirx.const(0, "int32"), number)


KV_CACHES = {
    form.name: form
    for form in (
        CacheFormat("f32", 1, False),
        CacheFormat("f16", 2, False),
        CacheFormat("int8", 4, True),
    )
}
"""The formats by name."""


def format_of(cache: Sequence[relax.Expr]) -> CacheFormat:
    """Return the format of a cache of these tensors."""
    if str(cache[0].ty.dtype) == "float32":
        return KV_CACHES["f32"]
    return KV_CACHES["int8" if len(cache) > 2 else "f16"]


Buffers = Sequence[Any]


def cache_arguments(
    form: CacheFormat,
    shape: AttentionShape,
    sequences: Extent,
    capacity: Extent,
    prefix: str = "",
) -> list[Any]:
    """Declare the parameters of a PrimFunc that are a layer's cache."""
    return [
        T.arg(prefix + name, T.buffer(tuple(kind.shape), str(kind.dtype)))
        for name, kind in form.fields(shape, sequences, capacity).items()
    ]


def write_token(
    form: CacheFormat,
    shape: AttentionShape,
    cache: Buffers,
    place: tuple[Any, Any, Any],
    element: Callable[[int, Any], tirx.PrimExpr],
) -> None:
    """Emit the write of the key and the value of a token to the cache.

    Parameters
    ----------
    form : CacheFormat
        How it is stored.
    shape : AttentionShape
        The heads.
    cache : sequence of Buffer
        The fields.
    place : tuple of PrimExpr
        Sequence, key head and position.
    element : callable
        ``element(which, x)`` is element x of the rotated key (0) or of the value (1).
    """
    s, h, p = place
    for which in range(2):
        factor: Any = None
        if form.scaled:
            top = T.alloc_buffer((1,), "float32")
            T.buffer_store(top, T.float32(LEVELS * SMALLEST), [0])
            with T.serial(0, shape.head_dim) as x:
                T.buffer_store(top, tirx.max(top[0], tirx.abs(element(which, x))), [0])
            T.buffer_store(cache[2 + which], top[0] / T.float32(LEVELS), [s, h, p])
            factor = T.float32(LEVELS) / top[0]
        with T.serial(0, shape.head_dim // form.per_word) as w:
            elements = [element(which, w * form.per_word + c) for c in range(form.per_word)]
            if factor is not None:
                elements = [value * factor for value in elements]
            at = [s, h, w, p] if which == 0 else [s, h, p, w]
            T.buffer_store(cache[which], form.pack(elements), at)
