"""The write of new keys and values into the cache.

A key is a column of the cache, its positions being the lanes of attention. A block of tokens with
adjacent positions is turned in registers and written by vectors; other tokens go in singly. Where
the cache is int8 each key and value is first divided by a scale of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
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

LEVELS = 127.0
SMALLEST = 1e-12
"""The least scale of an int8 key or value."""


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
        keys: Buffer,
        values: Buffer,
        key_scales: Buffer | None = None,
        value_scales: Buffer | None = None,
    ) -> None:
        self.heads, self.qkv, self.rope = heads, qkv, rope
        self.key_scales, self.value_scales = key_scales, value_scales
        self.sequence, self.position, self.keys, self.values = sequence, position, keys, values
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
            with loop(heads.head_dim) as d:
                for v in range(0, heads.block, n):
                    column = self._stored(load(columns, d, v, lanes=n))
                    store(self.keys, column, s, kv, d, place + v)

        def singly() -> None:
            with loop(heads.block) as r:
                self.token(kv, bind(first + r), rows)

        branch(adjacent[0] == 1, together, singly)

    def token(self, kv: Expr, t: Expr, rows: Buffer) -> None:
        """Emit the append of a token's key and value of one head; `rows` is ``(1, D)`` of room."""
        s, place = bind(int64(self.sequence[t])), bind(int64(self.position[t]))
        self._rotated_key(kv, t, rows, 0)
        with loop(self.heads.head_dim) as d:
            store(self.keys, self._stored(rows[0, d]), s, kv, d, place)
        self._value(kv, t)

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

    def _stored(self, value: Expr) -> Expr:
        """Return float32 lanes as the cache has them."""
        dtype, n = str(self.keys.dtype), lanes_of(value)
        if dtype == "float32":
            return value
        if dtype == "int8":
            value = rounded(value) if n > 1 else T.cast(T.nearbyint(value), "int32")
        return T.cast(value, dtype if n == 1 else f"{dtype}x{n}")

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
