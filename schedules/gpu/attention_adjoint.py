"""The tensors of attention's adjoint: what it reads, what its launches leave, what it writes."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from ..tir import Buffer, Expr, bind
from .attention_heads import Columns, rotate
from .attention_rows import PackedRows
from .attention_vectors import matrix_of_vectors, view
from .halves import Halves
from .kernel import scratch


class Adjoint:
    """The tensors, and what the launches leave for each other.

    Parameters
    ----------
    packed : PackedRows
        The queries, keys and values.
    dy : Buffer
        The outer adjoint, ``(B C, Hq D)`` float32.
    outer : Halves or None
        The same, to be read instead.
    out : Buffer
        ``(B C, (Hq + 2 Hkv) D)`` float32, the result.
    apart : bool
        Whether each query head leaves its part of dK and dV, to be added up by another launch.
    """

    def __init__(
        self, packed: PackedRows, dy: Buffer, outer: Halves | None, out: Buffer, apart: bool
    ) -> None:
        self.packed, self.heads, self.apart = packed, packed.heads, apart
        self.halves, heads = outer, self.heads
        self.dy, self.out = (matrix_of_vectors(x, heads.lanes) for x in (dy, out))
        rows = packed.batch * packed.context
        if outer is not None:
            self.dy = view(outer.words, [rows, heads.heads * heads.vectors], heads.row_dtype)
        # Logarithm of the sum of the exponentials, and rowsum(P dP), of each head and token.
        self.logarithm, self.mean = (scratch([heads.heads, rows]) for _ in range(2))
        if apart:
            columns = heads.heads * heads.vectors
            self.parts = [scratch([rows, columns], heads.dtype) for _ in range(2)]

    def outer(self, b: Expr, h: Expr) -> Columns:
        """Return the outer adjoint of query head h of row b."""
        return self.packed.columns(self.dy, b, h)

    def weight(self, b: Expr, token: Expr) -> Expr | None:
        """Return the factor that undoes the scale of a token's outer adjoint, None without one."""
        if self.halves is None:
            return None
        return bind(self.halves.undo[b * self.packed.context + token])

    def write_rotated(
        self, b: Expr, head: Expr, token: Expr, v: Expr, low: Expr, high: Expr
    ) -> None:
        """Emit the store of a pair of vectors, rotated back, as those of a head of the input."""
        position = token - self.packed.starts[b, token]
        pair = rotate(self.heads, self.packed.rope, position, v, low, high, back=True)
        self._write(self.out, b, head, token, v, *pair)

    def write_key(self, b: Expr, kv: Expr, token: Expr, v: Expr, low: Expr, high: Expr) -> None:
        """Emit the store of a pair of vectors of dK."""
        self.write_rotated(b, self.heads.heads + kv, token, v, low, high)

    def write_value(self, b: Expr, kv: Expr, token: Expr, v: Expr, low: Expr, high: Expr) -> None:
        """Emit the store of a pair of vectors of dV."""
        head = self.heads.heads + self.heads.kv_heads + kv
        self._write(self.out, b, head, token, v, low, high)

    def write_part(
        self, part: int, b: Expr, h: Expr, token: Expr, v: Expr, low: Expr, high: Expr
    ) -> None:
        """Emit the store of a pair of vectors of what query head h adds to dK (0) or dV (1)."""
        self._write(self.parts[part], b, h, token, v, low, high)

    def _write(
        self, matrix: Buffer, b: Expr, head: Expr, token: Expr, v: Expr, low: Expr, high: Expr
    ) -> None:
        row = bind(b * self.packed.context + token)
        column = bind(head * self.heads.vectors + v)
        T.buffer_store(matrix, low, [row, column])
        T.buffer_store(matrix, high, [row, column + self.heads.half])
