"""The adjoint of attention: threads take key heads, so that nothing is added to by two of them.

With weights P, outer adjoint dO and ``dP = dO V^T``, each block of queries adds ``P^T dO`` to dV
and ``dS^T Q`` to dK, where ``dS = P (dP - rowsum(P dP)) / sqrt(D)``, and is itself done with
``dQ = dS K`` (Dao et al. 2022, appendix B.4). P is computed again.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..tir import Buffer, Expr, bind, build, int64, load, loop, splat, static, store, zeros
from .attention import rotated_keys
from .attention_blocks import (
    Heads,
    QueryBlock,
    clear_rows,
    copy_rows,
    products,
    rotate,
    transpose,
)
from .isa import Isa
from .microkernel import Tile, accumulate


def attention_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out the adjoint of the fused queries, keys and values."""
    batch, context = (static(extent) for extent in function.params[2].shape)
    if batch is None or context is None or int(parameters["head_dim"]) % 16:
        return None
    heads = Heads(Isa(target), parameters, context)

    def body(dy: Buffer, qkv: Buffer, starts: Buffer, rope: Buffer, out: Buffer) -> None:
        with loop(batch * heads.kv_heads, parallel=True) as task:
            b, kv = bind(task // heads.kv_heads), bind(task % heads.kv_heads)
            _KeyHead(heads, dy, qkv, starts, rope, out, b, kv).emit()

    return build(function, body)


class _KeyHead:
    """One key and value head of one row, with the query heads that share it."""

    def __init__(
        self,
        heads: Heads,
        dy: Buffer,
        qkv: Buffer,
        starts: Buffer,
        rope: Buffer,
        out: Buffer,
        b: Expr,
        kv: Expr,
    ) -> None:
        self.heads, self.b, self.kv = heads, b, kv
        self.dy, self.qkv, self.starts, self.rope, self.out = dy, qkv, starts, rope, out
        self.key = rotated_keys(heads, qkv, starts, rope, b, kv)
        rows, d, block = heads.padded, heads.head_dim, heads.block
        self.value, self.dkey, self.dvalue = (T.alloc_buffer((rows, d)) for _ in range(3))
        self.outer, self.outer_transposed = T.alloc_buffer((block, d)), T.alloc_buffer((d, block))
        self.dscores, self.dquery = T.alloc_buffer((rows, block)), T.alloc_buffer((block, d))
        self.block = QueryBlock(heads)

    def emit(self) -> None:
        """Emit the whole head."""
        heads = self.heads
        column, first = self._column(heads.heads + heads.kv_heads), self.b * heads.context
        copy_rows(
            heads,
            lambda j, d, n: load(self.qkv, first + j, column + d, lanes=n),
            self.value,
            0,
            heads.context,
        )
        clear_rows(heads, self.value, heads.context, heads.padded)
        clear_rows(heads, self.dkey, 0, heads.padded)
        clear_rows(heads, self.dvalue, 0, heads.padded)
        with loop(heads.padded // heads.block) as q:
            self.block.open(self.starts, self.b, bind(q * heads.block))
            with loop(heads.group) as g:
                self._query_block(bind(self.kv * heads.group + g))
        self._store_keys_and_values()

    def _column(self, head: int) -> Expr:
        """Return the column of this head among those of the fused input from `head` on."""
        return bind((head + self.kv) * self.heads.head_dim)

    def _query_block(self, h: Expr) -> None:
        heads, block = self.heads, self.block
        block.rotate_queries(self.qkv, self.rope, self.b, h)
        self._outer_adjoint(h)
        self._adjoint_of_scores(block.softmax(self.key))
        self._add_products(self.dvalue, block.scores, self.outer)
        self._add_products(self.dkey, self.dscores, block.query)
        n = heads.lanes
        block.mix(
            self.dscores,
            lambda j, d: load(self.key, j, d, lanes=n),
            lambda r, d, vector: store(self.dquery, vector, r, d),
        )
        with loop(heads.block) as r:
            place = bind(int64(block.place[r]))
            row = self.b * heads.context + block.first + r
            column = h * heads.head_dim
            block.when_token(r, lambda: self._rotate_back(self.dquery, r, place, row, column))

    def _rotate_back(
        self, source: Buffer, r: Expr, position: Expr, row: Expr, column: Expr
    ) -> None:
        """Emit row r of an adjoint, rotated back, into the output."""
        rotate(
            self.heads,
            self.rope,
            position,
            lambda d, n: load(source, r, d, lanes=n),
            lambda d, value: store(self.out, value, row, column + d),
            back=True,
        )

    def _outer_adjoint(self, h: Expr) -> None:
        """Emit the block's rows of dy and their transpose; rows past the context are zero."""
        heads, block = self.heads, self.block

        def outer(r: Expr, d: int, n: int) -> Expr:
            row = self.b * heads.context + block.token(r)
            value = load(self.dy, row, h * heads.head_dim + d, lanes=n)
            if heads.context % heads.block == 0:
                return value
            inside = splat(block.first + r < heads.context, n)
            return T.Select(inside, value, zeros("float32", n))

        copy_rows(heads, outer, self.outer, 0, heads.block)
        transpose(heads, self.outer, self.outer_transposed)

    def _adjoint_of_scores(self, total: Tile) -> None:
        """Emit P in place of its numerators, and dS."""
        heads, block, n = self.heads, self.block, self.heads.lanes
        mean, inverse = Tile(1, 2, n), Tile(1, 2, n)
        mean.fill()
        inverse.fill(lambda i, v: splat(1.0, n) / total[0, v])

        def dweights(j: Expr) -> None:
            tile = products(heads, self.value, self.outer_transposed, j)
            for i, v in tile:
                mean[0, v] = mean[0, v] + load(block.scores, j + i, v * n, lanes=n) * tile[i, v]
            tile.store(lambda i, v: (self.dscores, j + i, v * n))

        block.key_tiles(dweights)
        for v in range(2):
            mean[0, v] = mean[0, v] * inverse[0, v]
        with loop(block.end, begin=block.begin) as j:
            for v in range(2):
                weight = bind(load(block.scores, j, v * n, lanes=n) * inverse[0, v])
                change = load(self.dscores, j, v * n, lanes=n) - mean[0, v]
                store(self.dscores, weight * change * splat(heads.scale, n), j, v * n)
                store(block.scores, weight, j, v * n)

    def _add_products(self, total: Buffer, weights: Buffer, rows: Buffer) -> None:
        """Emit ``total[j] += sum_r weights[j, r] rows[r]`` for the keys that the block sees."""
        heads, n = self.heads, self.heads.lanes

        def tile_of(j: Expr) -> None:
            def panel(column: Expr, width: int) -> None:
                tile = Tile(heads.rows, width, n)
                tile.fill(lambda i, v: load(total, j + i, column + v * n, lanes=n))
                accumulate(
                    tile,
                    heads.block,
                    lambda i, r: weights[j + i, r],
                    lambda r, v: load(rows, r, column + v * n, lanes=n),
                )
                tile.store(lambda i, v: (total, j + i, column + v * n))

            heads.panels(panel)

        self.block.key_tiles(tile_of)

    def _store_keys_and_values(self) -> None:
        heads, n = self.heads, self.heads.lanes
        key_column = self._column(heads.heads)
        value_column = self._column(heads.heads + heads.kv_heads)
        with loop(heads.context) as j:
            row, position = self.b * heads.context + j, bind(j - int64(self.starts[self.b, j]))
            self._rotate_back(self.dkey, j, position, row, key_column)
            for d in range(0, heads.head_dim, n):
                store(self.out, load(self.dvalue, j, d, lanes=n), row, value_column + d)
