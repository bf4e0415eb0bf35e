"""Packed rows of queries, keys and values, as the training kernels of attention read them."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind, branch, shape, static
from .attention_heads import Columns, Heads, RotatedColumns, Rows, rotate
from .attention_vectors import matrix_of_vectors, splat
from .kernel import elements, scratch

LARGEST = 65504.0
"""The largest half. Queries, keys and values need no scale below it: no score or sum of values is
of any digits that a half of 2^-24 and more does not have."""


def is_static(starts: Buffer) -> bool:
    """Tell whether the rows and their tokens are numbers."""
    return all(static(extent) is not None for extent in starts.shape)


class PackedRows:
    """The fused input of B rows of C tokens, and where the documents in it begin.

    Parameters
    ----------
    heads : Heads
        The shape.
    qkv : Buffer
        ``(B C, (Hq + 2 Hkv) D)`` float32.
    starts : Buffer
        ``(B, C)`` int32; documents follow each other, so it never falls along a row.
    rope : Buffer
        ``(>= C, D)`` float32.
    """

    def __init__(self, heads: Heads, qkv: Buffer, starts: Buffer, rope: Buffer) -> None:
        self.heads, self.starts = heads, starts
        self.batch, self.context = shape(starts)
        self.staged = heads.shared_bytes > 0
        self.qkv, self.rope = (matrix_of_vectors(b, heads.lanes) for b in (qkv, rope))
        self.rotated = None if self.staged and not heads.halves else self._rotated()

    def _rotated(self) -> Buffer:
        """Launch the rotation of all queries and keys into memory, for kernels that stage none.

        With halves the values go there, too.
        """
        heads, turned = self.heads, self.heads.heads + self.heads.kv_heads
        every = turned + (heads.kv_heads if heads.halves else 0)
        rows = self.batch * self.context
        result = scratch([rows, every * heads.vectors], heads.row_dtype)

        def pair(index: Expr) -> None:
            row, place = bind(index // (every * heads.half)), bind(index % (every * heads.half))
            first, v = bind(place // heads.half * heads.vectors), bind(place % heads.half)
            b, token = bind(row // self.context), bind(row % self.context)
            a, z = self.qkv[row, first + v], self.qkv[row, first + heads.half + v]
            a, z = bind(a), bind(z)

            def store(low: Expr, high: Expr) -> None:
                T.buffer_store(result, self._kept(low), [row, first + v])
                T.buffer_store(result, self._kept(high), [row, first + heads.half + v])

            def turn() -> None:
                position = token - self.starts[b, token]
                store(*rotate(heads, self.rope, position, v, a, z))

            branch(place < turned * heads.half if heads.halves else True, turn, lambda: store(a, z))

        elements(rows * every * heads.half, heads.threads, pair)
        return result

    def _kept(self, vector: Expr) -> Expr:
        """Return a vector as rows are kept in memory; halves end at their largest number."""
        heads = self.heads
        if not heads.halves:
            return vector
        largest = splat(T.float32(LARGEST), heads.lanes)
        return T.Cast(heads.row_dtype, T.max(T.min(vector, largest), -largest))

    def columns(self, matrix: Buffer, b: Expr, head: Expr) -> Columns:
        """Return a head of row b of a matrix of vectors, as it lies there."""
        first = bind(b * self.context)
        return Columns(self.heads, matrix, bind(head * self.heads.vectors), lambda t: first + t)

    def rotated_head(self, b: Expr, head: Expr) -> Columns:
        """Return a query head, or a key head counted from Hq on, rotated."""
        if self.rotated is not None:
            return self.columns(self.rotated, b, head)
        columns = self.columns(self.qkv, b, head)
        return RotatedColumns(columns, self.rope, lambda t: t - self.starts[b, t])

    def query(self, b: Expr, h: Expr) -> Columns:
        """Return query head h of row b, rotated."""
        return self.rotated_head(b, h)

    def key(self, b: Expr, kv: Expr) -> Columns:
        """Return key head kv of row b, rotated."""
        return self.rotated_head(b, self.heads.heads + kv)

    def value(self, b: Expr, kv: Expr) -> Columns:
        """Return value head kv of row b."""
        matrix = self.rotated if self.heads.halves else self.qkv
        return self.columns(matrix, b, self.heads.heads + self.heads.kv_heads + kv)

    def rows(self, thread: Expr, count: int, staged: bool = True) -> Rows:
        """Return a block of rows."""
        return Rows(self.heads, thread, count, self.context, staged and self.staged)


class Visible:
    """Which keys the queries of a thread's tile see.

    Parameters
    ----------
    packed : PackedRows
        The rows.
    b : PrimExpr
        The row of the batch.
    queries : list of PrimExpr
        The thread's queries, tokens that may lie past the context.
    """

    def __init__(self, packed: PackedRows, b: Expr, queries: list[Expr]) -> None:
        self.queries = [bind(T.min(i, packed.context - 1)) for i in queries]
        self.starts = [bind(packed.starts[b, i]) for i in self.queries]

    def choose(self, query: int, key: Expr, seen: Expr, hidden: float) -> Expr:
        """Return a value where the thread's query sees a key, and a constant elsewhere."""
        i, start = self.queries[query], self.starts[query]
        return T.if_then_else(T.And(key <= i, key >= start), seen, T.float32(hidden))


def key_blocks(
    packed: PackedRows, b: Expr, first: Expr, queries: int, keys: int
) -> tuple[Expr, Expr]:
    """Return the range of the blocks of keys that a block of queries sees a part of."""
    last = T.min(first + queries, packed.context)
    return bind(packed.starts[b, first] // keys), bind((last + (keys - 1)) // keys)
