"""A block of queries in the adjoint of attention, on matrix units whose fragments are known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .attention_fragment_block import Block, mix, products
from .attention_fragment_tile import pairs_of
from .attention_heads import LOG2_E, MASKED
from .attention_rows import key_blocks
from .fragments import ROWS, RowSums, exp2, quad_max, quad_sum
from .halves import scales
from .kernel import registers
from .vectors import held


class QueryBlock(Block):
    """A block of queries of one head: the sums of its rows of scores, and dQ."""

    def emit(self) -> None:
        """Emit the block."""
        heads, stored = self.heads, self.stored
        self.kv = bind(self.h // heads.group)
        self.ask(self.count, self.first, 0, (self.matrix, self.h), (self.outer, self.h))
        self.left = self.lefts()
        self.seen = [bind(T.min(token, self.packed.context - 1)) for token in self.tokens]
        self.starts = [bind(self.packed.starts[self.b, token]) for token in self.seen]
        blocks = key_blocks(self.packed, self.b, self.first, self.count, self.streamed)
        logarithm, mean, reach = self._statistics(blocks)
        places = [bind(self.begin + token) for token in self.seen]
        undo = [held(stored.halves.undo[place]) for place in places]
        for i, token in enumerate(self.tokens):
            keep = partial(
                self._keep, places[i], logarithm[i], mean[i] * undo[i], reach[i], undo[i]
            )
            when(tirx.all(self.lane.column == 0, token < self.packed.context), keep)
        # An adjoint of a score is at most twice the largest product.
        factors = [scales(reach[i]) for i in range(2)]
        ups = [held(up * T.float32(0.5)) for up, _ in factors]
        dquery = RowSums(heads.head_dim)
        dquery.clear()

        def add(block: Expr, place: Expr) -> None:
            scores, dweights = self._tiles(block, place)
            for j in range(scores.count):
                found = []
                for c, (score, dweight) in enumerate(
                    zip(scores.get(j), dweights.get(j), strict=True)
                ):
                    i = c // 2
                    weight = exp2(score - logarithm[i]) * ups[i]
                    found.append(held(weight * (dweight - mean[i])))
                scores.put(j, found)
            mix(dquery, scores, self.one.rows, place, heads.head_dim, self.streamed)

        self._each(blocks, add)
        out = pairs_of(stored.out)
        for i, token in enumerate(self.tokens):
            factor = held(factors[i][1] * T.float32(2.0 * heads.scale) * undo[i])
            store = partial(self.store_rotated, i, out, self.h, dquery, factor)
            when(token < self.packed.context, store)

    def _each(self, blocks: tuple[Expr, Expr], body: Callable[[Expr, Expr], None]) -> None:
        """Emit ``body(first key, its place)`` for blocks that the subgroup's queries see."""
        key = self.heads.heads + self.kv
        furthest = bind(self.first + self.own + (ROWS - 1))
        sources = (self.matrix, key), (self.matrix, key + self.heads.kv_heads)

        def seen(block: Expr, place: Expr) -> None:
            when(block <= furthest, partial(body, block, place))

        self.stream(blocks, sources, seen)

    def _tiles(self, block: Expr, begin: Expr) -> tuple[RowSums, RowSums]:
        """Emit the scores, in units of log 2, and dP for the keys from `block` on, at `begin`."""
        heads = self.heads
        scores, dweights = (
            products(left, rows.rows, begin, self.streamed, heads.head_dim)
            for left, rows in zip(self.left, (self.one, self.other), strict=True)
        )
        factor = T.float32(heads.scale * LOG2_E)
        for j in range(scores.count):
            found = []
            for c, value in enumerate(scores.get(j)):
                place = bind(block + (j * 8 + c % 2) + self.lane.column)
                seen = T.And(place <= self.seen[c // 2], place >= self.starts[c // 2])
                found.append(held(T.if_then_else(seen, value * factor, T.float32(MASKED))))
            scores.put(j, found)
        return scores, dweights

    def _statistics(self, blocks: tuple[Expr, Expr]) -> tuple[list[Expr], list[Expr], list[Expr]]:
        """Emit the sums of the thread's rows.

        Returns
        -------
        tuple of list
            The logarithm to base 2 of the sum of exponentials, the mean of dP, and the largest dP.
        """
        top, total, weighted, reach = (registers([2]) for _ in range(4))
        for i in range(2):
            T.buffer_store(top, T.float32(MASKED), [i])
            for sums in (total, weighted, reach):
                T.buffer_store(sums, T.float32(0.0), [i])

        def add(block: Expr, place: Expr) -> None:
            scores, dweights = self._tiles(block, place)
            for i in range(2):
                self._add_row(i, scores, dweights, (top, total, weighted, reach))

        self._each(blocks, add)
        found: tuple[list[Expr], list[Expr], list[Expr]] = ([], [], [])
        for i in range(2):
            peak = quad_max(top[i])
            factor = held(exp2(top[i] - peak))
            whole, mean = quad_sum(total[i] * factor), quad_sum(weighted[i] * factor)
            found[0].append(held(peak + T.log2(whole)))
            found[1].append(held(mean / whole))
            found[2].append(quad_max(reach[i]))
        return found

    def _add_row(self, i: int, scores: RowSums, dweights: RowSums, sums: tuple) -> None:
        """Emit the addition of a block to the sums of one of the thread's rows."""
        top, total, weighted, reach = sums
        terms = [
            (scores.get(j)[2 * i + c], dweights.get(j)[2 * i + c])
            for j in range(scores.count)
            for c in range(2)
        ]
        peak, largest = top[i], reach[i]
        for score, term in terms:
            peak = held(T.max(peak, score))
            seen = score > T.float32(MASKED)
            largest = held(T.max(largest, T.if_then_else(seen, T.fabs(term), T.float32(0.0))))
        factor = held(exp2(top[i] - peak))
        whole, mean = total[i] * factor, weighted[i] * factor
        for score, term in terms:
            weight = held(exp2(score - peak))
            whole, mean = held(whole + weight), held(mean + weight * term)
        for buffer, value in zip(sums, (peak, whole, mean, largest), strict=True):
            T.buffer_store(buffer, value, [i])

    def _keep(self, place: Expr, logarithm: Expr, mean: Expr, reach: Expr, undo: Expr) -> None:
        for buffer, value in zip(
            self.stored.statistics(), (logarithm, mean, reach * undo), strict=True
        ):
            T.buffer_store(buffer, value, [self.h, place])
