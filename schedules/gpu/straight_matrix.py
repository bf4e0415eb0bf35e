"""The adjoint of ternary projections on matrix units of 16-bit floats, which sum in 32 bits.

Three launches, or a few more: the rows of dy as scaled 16-bit floats with the adapters' thin
factors; the product with the weights, with what the adapters add; and the adapters' gradients.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..ternary import TILE, Packing, Segment, aligned, by_segment, segments
from ..tir import Buffer, Expr, bind, shape, splat, static, when
from . import warpgroup_tile
from .bitlinear_vjp import Lora
from .halves import Halves
from .kernel import Gpu, build, ceil_div, launch, loop, registers, scratch
from .lora_gradients import emit_gradients
from .matrix_plan import Corner, Plan, UnitPlan, WarpgroupPlan
from .matrix_tile import SPLITS, MatrixTile, choose
from .packed import COLUMNS, Columns
from .share import Share
from .ternary_matrix import FEWEST
from .thin_factors import Normed, Thin, ThinFactors
from .vectors import LANES, four, fours, held, lane
from .warpgroup import line_place
from .warpgroup_weights import TernaryHalves
from .work import THREADS, Place, Work, launch_works

EIGHT = 8
"""16-bit floats of a vector of four words."""
PAIRS = 0x00030003
"""The places of two codes in a word of two 16-bit floats."""
MAGIC = 0x64006400
"""The bits of 1024 in both: with a code in the low bits it is 1024 + code."""


def units(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `bitlinear_vjp` on matrix units; None without any, or for few tokens."""
    parts, gpu = segments(parameters), Gpu(target)
    tokens = static(function.params[0].shape[0])
    if not aligned(parts) or tokens is None or tokens < FEWEST:
        return None
    columns, packing = shape(function.params[1])[1], Packing.of(parameters)
    plan = _plan(gpu, packing, tokens, parts[-1].end, columns)
    if plan is None:
        return None
    scale = float(parameters["lora_scale"])

    def body(dy: Buffer, x: Buffer, packed: Buffer, scales: Buffer, *rest: Buffer) -> None:
        halves = _halves(parts, plan, dy, scales)
        product = _Product(plan, packed, columns, halves)
        weight, epsilon = None, float(parameters.get("epsilon", 0.0))
        if "epsilon" in parameters:
            weight, rest = rest[0], rest[1:]
        if len(rest) == 1:
            launch_works([halves])
            product.emit(rest[0], None)
            for work in product.sums(rest[0]):
                launch_works([work])
            return
        separate = len(rest) == 7
        a, b, lora_input = rest[0], rest[1], rest[2] if separate else x
        dx, da, db, *through = rest[3:] if separate else rest[2:]
        lora = Lora(gpu, parts, scale, dy, lora_input, a, b, True, weight, epsilon)
        thin_factors(lora, parts, scales, halves)
        product.emit(dx, None if separate else lora)
        apart = [lora.through(through[0])] if separate else []
        sums = product.sums(dx, None if separate else lora)
        if sums or apart:
            launch_works([*sums, *apart])
        emit_gradients(gpu, tokens, lora.skinny(da, db))

    return build(function, body)


def _plan(gpu: Gpu, packing: Packing, tokens: int, rows: int, columns: int) -> Plan | None:
    """Return how the product is laid out; None where it can't be."""
    if gpu.warpgroups and not packing.base3:
        wide = warpgroup_tile.choose(tokens, columns, 2 * rows, max(SPLITS))
        if wide is not None:
            return WarpgroupPlan(wide, TernaryHalves, "float32", line_place)
    unit = gpu.matrix("float16")
    found = unit and choose(gpu, unit, tokens, columns, rows // EIGHT, EIGHT, SPLITS)
    if not unit or not found:
        return None

    def weights(tile: MatrixTile, packed: Buffer, first: Expr) -> _Weights:
        return _Weights(tile, Columns(packed, packing), columns, first)

    return UnitPlan(gpu, unit, found[0], weights, found[1], _in_order)


def _in_order(sums: list[Expr]) -> list[Expr]:
    """Return the sums of four columns as `_Weights` has them, in order and as float32."""
    a, c, b, d = (T.reinterpret("float32", s) for s in sums)
    return [a, b, c, d]


def _halves(parts: list[Segment], plan: Plan, dy: Buffer, scales: Buffer) -> Halves:
    """Return the work of dy times the scales of its columns' projections."""
    tokens, rows = shape(dy)

    def fetch(token: Expr, vector: Expr) -> Expr:
        scale = bind(by_segment(parts, vector * LANES, lambda p: scales[p.index]))
        return fours(dy)[token, vector] * splat(scale, LANES)

    return Halves(tokens, ceil_div(tokens, plan.rows) * plan.rows, rows, fetch, plan.order)


def thin_factors(lora: Lora, parts: list[Segment], scales: Buffer, halves: Halves) -> None:
    """Emit the launch of u and du, and of the halves."""
    x, dy, a, b = (fours(buffer) for buffer in (lora.x, lora.dy, lora.a, lora.b))

    def up(part: Segment) -> Thin:
        first, column = part.begin // LANES, part.column // LANES
        return Thin(
            lambda token, v: dy[token, first + v],
            lambda j, v: b[j, column + v],
            (part.end - part.begin) // LANES,
            lora.du,
            part.adapter * lora.rank,
            part,
        )

    def down(slot: int) -> Thin:
        return Thin(
            lambda token, v: x[token, v],
            lambda j, v: a[slot, j, v],
            lora.columns // LANES,
            lora.u,
            slot * lora.rank,
        )

    products = [*map(up, lora.adapted), *map(down, range(lora.adapters))]
    size = lora.gpu, lora.tokens, lora.rank, lora.scale
    norm = None
    if lora.norm is not None:
        norm = Normed(fours(lora.norm), lora.columns, lora.epsilon, lora.inverse)
    ThinFactors(*size, products, parts, lora.dy, scales, halves, norm).emit()


class _Weights:
    """The weights as 16-bit floats: a word is two vectors of a row of the depth.

    Of each four columns the middle ones change places, which is how they come out of a word.
    """

    by_row = True

    def __init__(self, tile: MatrixTile, matrix: Columns, columns: int, first: Expr) -> None:
        self.matrix, self.first, self.dtype = matrix, first, matrix.dtype
        self.places, self.ragged = columns // COLUMNS, columns % tile.columns
        self.rows, self.columns = tile.step * EIGHT, tile.columns // EIGHT
        self.across = tile.columns // TILE
        self.words = self.rows * self.across

    def _place(self, index: Expr) -> tuple[Expr, Expr]:
        """Return the row and the word of it: neighbours take neighbours."""
        if self.rows < TILE:
            return index % self.rows, index // self.rows
        row = index // (TILE * self.across) * TILE + index % TILE
        return row, index // TILE % self.across

    def fetch(self, index: Expr, step: Expr) -> Expr:
        """Return one of a step's packed words."""
        row, word = self._place(index)
        return self.matrix.fetch(step * self.rows + row, self._column(word))

    def _column(self, word: Expr) -> Expr:
        """Return which 16 columns of the matrix these of the tile are."""
        column = self.first // COLUMNS + word
        return tirx.min(column, self.places - 1) if self.ragged else column

    def unpack(self, index: Expr, word: Expr) -> list[tuple[Expr, Expr, Expr]]:
        """Return the two vectors that a word becomes."""
        row, place = self._place(index)
        word = self.matrix.word(word, self._column(place))
        found = []
        for v in range(2):
            pairs = [_pair(word, 4 * v + shift) for shift in (0, 8, 2, 10)]
            found.append((row, place * 2 + v, four(pairs, "int32")))
        return found


def _pair(word: Expr, shift: int) -> Expr:
    """Return the weights of the codes at `shift` and 16 bits further as two 16-bit floats."""
    shifted = word if shift == 0 else word >> shift
    codes = T.reinterpret("float16x2", (shifted & PAIRS) | MAGIC)
    return held(T.reinterpret("int32", codes - T.broadcast(T.float16(1025.0), 2)))


class _Product:
    """The launch of ``dx = undo (halves W) + du A``.

    Where the depth is cut, its parts' products go to memory, and :meth:`sums` adds them.
    """

    def __init__(self, plan: Plan, packed: Buffer, columns: int, halves: Halves) -> None:
        self.plan, self.splits, self.packed, self.halves = plan, plan.parts, packed, halves
        self.rows, self.columns = shape(packed)[0] * TILE, columns

    def emit(self, dx: Buffer, lora: Lora | None) -> None:
        """Emit the launch; without `lora` nothing is added."""
        plan, splits = self.plan, self.splits
        self.parts = scratch([splits, *shape(dx)]) if splits > 1 else None
        grid = [ceil_div(shape(dx)[0], plan.rows), ceil_div(self.columns, plan.columns), splits]
        with launch(grid, [plan.threads]) as (down, across, split, thread):
            first = bind(across * plan.columns)
            place = Corner(thread, bind(down * plan.rows), first, split)
            near = None
            if lora is not None and self.parts is None:
                near = plan.near(place, rows_of(lora.du))
            finish = partial(self._finish, first, dx, lora, near, split)
            words = fours(self.halves.words)
            plan.emit(place, words, self.rows // EIGHT, self.packed, finish)

    def sums(self, dx: Buffer, lora: Lora | None = None) -> list[Work]:
        """Return the work that adds the parts, and what the adapters add; none without parts."""
        if self.parts is None:
            return []
        if lora is not None:
            return [lora.through(dx, self, self.parts)]
        return [_Sums(self, dx)]

    def total(self, parts: Buffer, row: Expr, column: Expr) -> Expr:
        """Return the sum of the parts' four columns from `column` on."""
        vectors = fours(parts)
        total = vectors[0, row, column // LANES]
        for part in range(1, self.splits):
            total = total + vectors[part, row, column // LANES]
        return total

    def _finish(
        self,
        first: Expr,
        dx: Buffer,
        lora: Lora | None,
        near: tuple[Buffer, Expr] | None,
        split: Expr,
        share: Share,
    ) -> None:
        """Emit the scale, the adapters and the store; `near` is as of `Plan.near`."""
        column = bind(first // LANES + share.vector)
        inside = column
        if self.columns % self.plan.columns:
            inside = bind(tirx.min(column, self.columns // LANES - 1))
        tokens, places = shape(dx)[0], share.rows
        if tokens % self.plan.rows:
            # Tokens past the end are the last one again; nobody stores them.
            places = [bind(tirx.min(row, tokens - 1)) for row in places]
        out = registers([len(places)], f"float32x{LANES}")
        for i, (place, sums) in enumerate(zip(places, share.sums(), strict=True)):
            undo = bind(self.halves.undo[place])
            T.buffer_store(out, four(sums) * splat(undo, LANES), [i])
        if self.parts is not None:
            share.store(fours(self.parts), column, out, split)
            return
        if lora is not None and near is not None:
            du, begin = near
            self._through(lora, du, [place - begin for place in places], inside, out)
        share.store(fours(dx), column, out)

    def _through(
        self, lora: Lora, du: Buffer, places: list[Expr], vector: Expr, out: Buffer
    ) -> None:
        """Emit the addition of ``du A`` to a thread's vectors; `places` are rows of `du`."""
        wide = LANES if lora.thin % LANES == 0 else 1
        du, a = fours(du) if wide == LANES else du, fours(lora.a)
        with loop(lora.thin // wide) as group:
            factors = []
            for c in range(wide):
                j = bind(group * wide + c)
                factors.append(bind(a[j // lora.rank, j % lora.rank, vector]))
            for i, place in enumerate(places):
                values, total = bind(du[place, 0, group]), out[i]
                for c, factor in enumerate(factors):
                    value = values if wide == 1 else lane(values, c)
                    total = total + splat(value, LANES) * factor
                T.buffer_store(out, total, [i])


def rows_of(du: Buffer) -> Buffer:
    """Return du, which is whole, as ``(T, 1, S r)``."""
    _, tokens, width = shape(du)
    return T.decl_buffer([tokens, 1, width], "float32", data=du.data)


class _Sums(Work):
    """The work that adds the parts of a product, a vector a thread."""

    def __init__(self, product: _Product, dx: Buffer) -> None:
        self.product, self.dx = product, dx
        self.tokens, columns = shape(dx)
        self.across = columns // LANES
        self.groups = ceil_div(self.tokens * self.across, THREADS)

    def finish(self, place: Place) -> None:
        """Emit the sum of a thread's vector."""
        index = bind(place.group * THREADS + place.thread)
        row, vector = bind(index // self.across), bind(index % self.across)
        total = self.product.total(self.product.parts, row, vector * LANES)
        when(row < self.tokens, lambda: T.buffer_store(fours(self.dx), total, [row, vector]))
