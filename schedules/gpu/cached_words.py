"""Keys and values in a cache's words: how they are read as vectors, and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..kv_cache import BIAS, LEVELS, SMALLEST, CacheFormat, code, half_bits, joined, to_half
from ..tir import Buffer, Expr, bind, when
from .attention_heads import Heads
from .attention_vectors import extract, matrix_of_vectors, vector_type
from .kernel import loop, registers
from .token_words import largest, word
from .vectors import LANES, four, held, lane

Pair = tuple[Expr, Expr]
"""Vectors ``v`` and ``half + v`` of a head."""


@dataclass(frozen=True)
class Stored(CacheFormat):
    """A format, and how its words are read.

    Attributes
    ----------
    lanes : int
        Elements of a vector of a value; four where words hold several.
    """

    lanes: int = LANES

    @classmethod
    def of(cls, heads: Heads, cache: Sequence[Buffer]) -> Stored:  # type: ignore[override]
        """Return the format of a cache of these buffers."""
        form = CacheFormat.of(cache)
        return cls(form.per_word, form.scaled, heads.lanes)

    @property
    def is_half(self) -> bool:
        """Whether elements are float16."""
        return self.per_word == 2

    @property
    def keys_type(self) -> str:
        """The type of a word of four positions' keys."""
        return f"int32x{LANES}" if self.per_word > 1 else vector_type(LANES)

    @property
    def values_type(self) -> str:
        """The type of the words of a vector of a value."""
        return {1: vector_type(self.lanes), 2: "int32x2", 4: "int32"}[self.per_word]

    def positions(self, words: Expr) -> list[Expr]:
        """Return the elements in a word of four positions, each of them a float32 vector."""
        if self.per_word == 1:
            return [words]
        words = held_vector(words, self.keys_type)
        if self.per_word == 2:
            return [_scaled_halves(half_bits(words, c), LANES) for c in range(2)]
        return [T.Cast(f"float32x{LANES}", code(words, c)) for c in range(4)]

    def row(self, words: Expr) -> Expr:
        """Return the vector of a value that words hold, as float32."""
        if self.per_word == 1:
            return words
        words = held_vector(words, self.values_type)
        if self.per_word == 4:
            octets = T.call_pure_extern(f"int8x{LANES}", "as_char4", words)
            return T.Cast(f"float32x{LANES}", octets)
        low, high = (bind(_scaled_halves(half_bits(words, c), 2)) for c in range(2))
        return four([lane(low, 0), lane(high, 0), lane(low, 1), lane(high, 1)])

    def words(self, vector: Expr, factor: Expr | None) -> list[Expr]:
        """Return the words of four elements, which the factor divides by their scale."""
        if self.per_word == 4:
            return [word(vector, factor)]
        bits = [T.reinterpret("int32", held(lane(vector, i))) for i in range(LANES)]
        halves = [held(to_half(bind(each))) for each in bits]
        return [held(joined(halves[i : i + 2])) for i in (0, 2)]

    def rounded(self, vector: Expr, factor: Expr | None) -> Expr:
        """Return what :meth:`row` gives of a vector that was stored."""
        if self.per_word == 1:
            return vector
        words = self.words(vector, factor)
        return self.row(words[0] if self.per_word == 4 else pair_of(words))


def held_vector(value: Expr, dtype: str) -> Expr:
    """Return words kept in registers, as several elements are taken out of them."""
    register = registers([1], dtype)
    T.buffer_store(register, value, [0])
    return register[0]


def pair_of(words: Sequence[Expr]) -> Expr:
    """Return two words as a vector."""
    return T.call_pure_extern("int32x2", "(int2)", *words)


def _scaled_halves(bits: Expr, lanes: int) -> Expr:
    floats = T.call_pure_extern(f"float32x{lanes}", f"as_float{lanes}", bits)
    return floats * T.broadcast(T.float32(BIAS), lanes)


def heads_top(heads: Heads, pairs: Callable[[Expr], Pair]) -> Expr:
    """Emit the largest magnitude of a head, whose vectors ``pairs(v)`` returns two by two."""
    top = registers([1])
    T.buffer_store(top, T.float32(LEVELS * SMALLEST), [0])
    with loop(heads.half) as v:
        low, high = pairs(v)
        T.buffer_store(top, T.max(top[0], T.max(largest(low), largest(high))), [0])
    return held(top[0])


class Store:
    """The fields of a layer's cache, to which a launch writes and from which it does not read.

    Parameters
    ----------
    heads : Heads
        The shape.
    cache : sequence of Buffer
        Keys, values, and where there are scales those of both.
    """

    def __init__(self, heads: Heads, cache: Sequence[Buffer]) -> None:
        self.heads, self.stored = heads, Stored.of(heads, cache)
        self.keys, values, *self.scales = cache
        wide = {1: heads.lanes, 2: 2, 4: 1}[self.stored.per_word]
        self.values = values if wide == 1 else matrix_of_vectors(values, wide)

    def put(
        self,
        place: tuple[Expr, Expr, Expr],
        v: Expr,
        key: Pair,
        value: Pair,
        tops: Sequence[Expr | None],
    ) -> None:
        """Emit the write of two vectors of a token's key and value.

        Parameters
        ----------
        place : tuple of PrimExpr
            Sequence, key head and position.
        v : PrimExpr
            The first of the vectors; the other is half a head further.
        key, value : tuple of PrimExpr
            Vectors ``v`` and ``half + v``, the key's rotated.
        tops : sequence of PrimExpr
            The largest magnitudes of the whole key and value, where there are scales.
        """
        s, kv, position = place
        factors = [None if top is None else bind(T.float32(LEVELS) / top) for top in tops]
        for half in range(2):
            at = v + half * self.heads.half
            put_key(self.keys, self.heads, self.stored, place, at, key[half], factors[0])
            stored = stored_row(self.stored, value[half], factors[1])
            T.buffer_store(self.values, stored, [s, kv, position, at])
        for field, top in zip(self.scales, tops, strict=False):
            store = partial(T.buffer_store, field, top / T.float32(LEVELS), [s, kv, position])
            when(tirx.EQ(v, 0), store)


def put_key(
    keys: Buffer,
    heads: Heads,
    stored: Stored,
    place: tuple[Expr, Expr, Expr],
    v: Expr,
    vector: Expr,
    factor: Expr | None,
) -> None:
    """Emit the write of vector v of a key: its words lie a row of positions apart."""
    s, kv, position = place
    if stored.per_word == 1:
        words = [extract(vector, i, heads.lanes) for i in range(heads.lanes)]
    else:
        words = stored.words(vector, factor)
    for i, each in enumerate(words):
        T.buffer_store(keys, each, [s, kv, v * len(words) + i, position])


def stored_row(stored: Stored, vector: Expr, factor: Expr | None) -> Expr:
    """Return a vector of a value as the cache has it."""
    if stored.per_word == 1:
        return vector
    words = stored.words(vector, factor)
    return words[0] if len(words) == 1 else pair_of(words)
