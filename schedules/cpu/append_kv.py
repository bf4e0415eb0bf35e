"""The write of new keys and values into the cache.

A key is a column of the cache, its positions being the lanes of attention. A block of tokens with
adjacent positions is turned in registers and written by vectors; other tokens go in singly. Where
the cache is int8 each key and value is first divided by a scale of its own. A word of a smaller
cache holds neighbours along the head: of keys it is put together lane by lane, values are written
through a view of narrower elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..kv_cache import LEVELS, SMALLEST, CacheFormat, joined, to_half
from ..tir import (
    Buffer,
    Expr,
    bind,
    branch,
    build,
    horizontal,
    int64,
    lanes_of,
    load,
    loop,
    shape,
    splat,
    store,
)
from .attention_blocks import Heads, rotate, transpose
from .isa import Isa
from .loops import over_rows
from .vector_math import rounded


def append_kv(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the write of new keys, rotated, and values into the cache, in place."""
    if int(parameters["head_dim"]) % 16:
        return None
    heads = Heads(Isa(target), parameters)

    def body(*buffers: Buffer) -> None:
        Append(heads, *buffers).emit()

    return build(function, body)


class Append:
    """The kernel's buffers, and the write of one block or token."""

    def __init__(
        self,
        heads: Heads,
        qkv: Buffer,
        sequence: Buffer,
        position: Buffer,
        rope: Buffer,
        *cache: Buffer,
    ) -> None:
        self.heads, self.qkv, self.rope = heads, qkv, rope
        self.form = CacheFormat.of(cache)
        self.keys, values, *scales = cache
        self.values = narrow(values, self.form)
        self.key_scales: Buffer | None = scales[0] if scales else None
        self.value_scales: Buffer | None = scales[1] if scales else None
        self.sequence, self.position = sequence, position
        self.tokens = shape(qkv)[0]

    def emit(self) -> None:
        """Emit the kernel; threads take key heads."""
        heads = self.heads

        def head(kv: Expr) -> None:
            rows = T.alloc_buffer((heads.block, heads.head_dim))
            blocks = self.tokens // heads.block
            if blocks != 0:
                with loop(blocks) as block:
                    self._block(kv, bind(block * heads.block), rows)
            with loop(self.tokens, begin=blocks * heads.block) as t:
                self.token(kv, t, rows)

        over_rows(heads.kv_heads, self.tokens * heads.head_dim, head)

    def _block(self, kv: Expr, first: Expr, rows: Buffer) -> None:
        heads, n = self.heads, self.heads.lanes
        adjacent = T.alloc_buffer((1,), "int32")
        store(adjacent, tirx.const(1, "int32"), 0)
        with loop(heads.block - 1) as r:
            t = bind(first + r)
            step = self.position[t + 1] - self.position[t]
            same = T.And(self.sequence[t + 1] == self.sequence[t], step == 1)
            store(adjacent, adjacent[0] * T.cast(same, "int32"), 0)

        def together() -> None:
            columns = T.alloc_buffer((heads.head_dim, heads.block))
            with loop(heads.block) as r:
                self._rotated_key(kv, first + r, rows, r)
                self._value(kv, first + r)
            transpose(heads, rows, columns)
            s, place = bind(int64(self.sequence[first])), bind(int64(self.position[first]))
            with loop(heads.head_dim // self.form.per_word) as w:
                for v in range(0, heads.block, n):
                    elements = [load(columns, d, v, lanes=n) for d in self._elements(w)]
                    store(self.keys, self._words(elements), s, kv, w, place + v)

        def singly() -> None:
            with loop(heads.block) as r:
                self.token(kv, bind(first + r), rows)

        branch(adjacent[0] == 1, together, singly)

    def token(self, kv: Expr, t: Expr, rows: Buffer) -> None:
        """Emit the append of a token's key and value of one head; `rows` is ``(1, D)`` of room."""
        s, place = bind(int64(self.sequence[t])), bind(int64(self.position[t]))
        self._rotated_key(kv, t, rows, 0)
        with loop(self.heads.head_dim // self.form.per_word) as w:
            elements = [rows[0, d] for d in self._elements(w)]
            store(self.keys, self._words(elements), s, kv, w, place)
        self._value(kv, t)

    def _elements(self, w: Expr) -> list[Expr]:
        """Return the elements of a head that a word holds."""
        return [w * self.form.per_word + c for c in range(self.form.per_word)]

    def _rotated_key(self, kv: Expr, t: Expr, rows: Buffer, r: Expr) -> None:
        column = (self.heads.heads + kv) * self.heads.head_dim
        rotate(
            self.heads,
            self.rope,
            bind(int64(self.position[t])),
            lambda d, n: load(self.qkv, t, column + d, lanes=n),
            lambda d, value: store(rows, value, r, d),
        )
        if self.key_scales is not None:
            factor = self._scale(self.key_scales, kv, t, lambda d, n: load(rows, r, d, lanes=n))
            for d in range(0, self.heads.head_dim, self.heads.lanes):
                value = load(rows, r, d, lanes=self.heads.lanes)
                store(rows, value * splat(factor, self.heads.lanes), r, d)

    def _scale(self, scales: Buffer, kv: Expr, t: Expr, source: Callable[[int, int], Expr]) -> Expr:
        """Emit the scale of a key or value, whose elements ``source(first, lanes)`` returns.

        Returns what its elements are multiplied with.
        """
        n = self.heads.lanes
        top = bind(tirx.abs(source(0, n)))
        for d in range(n, self.heads.head_dim, n):
            top = bind(T.max(top, tirx.abs(source(d, n))))
        largest = bind(T.max(horizontal(top, T.max), T.float32(LEVELS * SMALLEST)))
        s, place = bind(int64(self.sequence[t])), bind(int64(self.position[t]))
        store(scales, largest / T.float32(LEVELS), s, kv, place)
        return bind(T.float32(LEVELS) / largest)

    def _encoded(self, value: Expr) -> Expr:
        """Return float32 lanes as int32 codes, or as the bits of float16."""
        n = lanes_of(value)
        if self.form.per_word == 2:
            return to_half(bind(T.reinterpret("int32" if n == 1 else f"int32x{n}", bind(value))))
        return rounded(value) if n > 1 else T.cast(T.nearbyint(value), "int32")

    def _words(self, elements: list[Expr]) -> Expr:
        """Return float32 lanes of the elements of words as the cache has them."""
        if self.form.per_word == 1:
            return elements[0]
        mask = 0xFFFFFFFF >> (32 - 32 // self.form.per_word)
        codes = [self._encoded(element) for element in elements]
        return joined([c & splat(tirx.const(mask, "int32"), lanes_of(c)) for c in codes])

    def _stored(self, value: Expr) -> Expr:
        """Return float32 lanes as the view of the values has them."""
        if self.form.per_word == 1:
            return value
        dtype, n = str(self.values.dtype), lanes_of(value)
        return T.cast(self._encoded(value), dtype if n == 1 else f"{dtype}x{n}")

    def _value(self, kv: Expr, t: Expr) -> None:
        heads, n = self.heads, self.heads.lanes
        column = (heads.heads + heads.kv_heads + kv) * heads.head_dim
        s, place = bind(int64(self.sequence[t])), bind(int64(self.position[t]))

        def element(d: int, lanes: int) -> Expr:
            return load(self.qkv, t, column + d, lanes=lanes)

        factor = None
        if self.value_scales is not None:
            factor = self._scale(self.value_scales, kv, t, element)
        for d in range(0, heads.head_dim, n):
            value = element(d, n)
            if factor is not None:
                value = value * splat(factor, n)
            store(self.values, self._stored(value), s, kv, place, d)


def narrow(values: Buffer, form: CacheFormat) -> Buffer:
    """Return the words of the values as their elements, which a processor can address."""
    if form.per_word == 1:
        return values
    *outer, words = shape(values)
    extents = [*outer, words * form.per_word]
    return T.decl_buffer(extents, {2: "int16", 4: "int8"}[form.per_word], data=values.data)
