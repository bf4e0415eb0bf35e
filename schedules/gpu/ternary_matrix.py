"""The ternary product of many tokens on matrix units: of 8-bit integers, or else 16-bit floats.

The tokens' integers are one factor, the weights' codes, unpacked on their way to the unit, the
other.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..linear import Linear
from ..ternary import TILE, TWO_BIT, Packing, Segment, aligned, by_segment, segments
from ..tir import Buffer, Expr, bind, branch, shape, splat, static
from . import adapter, warpgroup_tile
from .kernel import Gpu, build, ceil_div, launch, registers
from .matrix_plan import Corner, Plan, UnitPlan, WarpgroupPlan
from .matrix_tile import MatrixTile, choose
from .packed import Columns
from .quantise import Tokens
from .share import Share
from .ternary_factors import LONGEST, Codes, HalfCodes, HalfTokens, integers
from .ternary_product import Product
from .ternary_tile import choose as choose_dots
from .token_words import Order
from .vectors import LANES, four, fours
from .warpgroup_weights import TernaryBytes, ordered

FEWEST = 48
"""Tokens from which on the units are worth their larger tiles."""
SHORT, LONG = 128, 512
"""Tokens of the prompts that tiles are chosen for where their number is not known."""


def tiles(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `bitlinear`, or `fused_bitlinear`, on matrix units.

    None where the device has none, or for few tokens.
    """
    parts, gpu = segments(parameters), Gpu(target)
    tokens, width = shape(function.params[0])
    columns, packing = width // 2 if "activation" in parameters else width, Packing.of(parameters)
    known = static(tokens)
    if not aligned(parts) or (known is not None and known < FEWEST):
        return None
    counts = (SHORT, LONG) if known is None else (known, known)
    short, long = (_plan(gpu, packing, count, parts[-1].end, columns) for count in counts)
    if short is None or long is None:
        return None

    def body(*buffers: Buffer) -> None:
        linear = Linear.of(parameters, buffers)
        x, rest = linear.x, (linear.b, linear.y, linear.residual)

        def quantised(
            multiple: int, order: Order | None = None, packing: Packing | None = None
        ) -> Tokens:
            made = Tokens.of(gpu, linear, multiple, order, packing)
            made.emit(linear.lora_scale)
            return made

        def units(plan: Plan) -> None:
            # Units take vectors of 16 columns, as the words of two bits are.
            made = quantised(plan.rows, plan.order, TWO_BIT)
            _Product(plan, parts, linear.packed, linear.scales, made, *rest).emit()

        def short_or_long() -> None:
            same = short == long
            several = True if same else shape(x)[0] * 2 < SHORT + LONG
            branch(several, lambda: units(short), lambda: units(long))

        def dots() -> None:
            small = choose_dots(gpu, shape(x)[0], parts[-1].end)
            made = quantised(small.height)
            Product(small, parts, linear.packed, linear.scales, made, *rest).emit()

        branch(True if known is not None else shape(x)[0] >= FEWEST, short_or_long, dots)

    return build(function, body)


def _plan(gpu: Gpu, packing: Packing, tokens: int, rows: int, columns: int) -> Plan | None:
    """Return how the product of so many tokens is laid out; None where it can't be."""
    if gpu.warpgroups and not packing.base3:
        wide = warpgroup_tile.choose(tokens, rows, columns, name=f"tile of {tokens}")
        if wide is not None:
            return WarpgroupPlan(wide, TernaryBytes, "int32", ordered)
    bytewise = gpu.matrix("int8")
    unit = bytewise or gpu.matrix("float16")
    if unit is None or (bytewise is None and columns > LONGEST):
        return None
    right = Codes if bytewise else HalfCodes
    elements = TILE // right.vectors
    found = choose(gpu, unit, tokens, rows, columns // elements, elements)
    if found is None:
        return None

    def weights(tile: MatrixTile, packed: Buffer, first: Expr) -> Codes:
        return right(tile, Columns(packed, packing), first)

    if bytewise:
        return UnitPlan(gpu, unit, found[0], weights)
    return UnitPlan(gpu, unit, found[0], weights, finished=integers, left=HalfTokens)


class _Product:
    """One launch: the product, its scale and the adapters.

    Parameters
    ----------
    plan : Plan
        How it is laid out.
    parts, packed, scales, tokens, b, y, residual
        As of `ternary_product.Product`; tokens padded to a multiple of the plan's rows.
    """

    def __init__(
        self,
        plan: Plan,
        parts: list[Segment],
        packed: Buffer,
        scales: Buffer,
        tokens: Tokens,
        b: Buffer | None,
        y: Buffer,
        residual: Buffer | None,
    ) -> None:
        self.plan, self.parts, self.packed, self.scales = plan, parts, packed, scales
        self.tokens, self.b, self.y, self.residual = tokens, b, y, residual
        self.rows = parts[-1].end

    def emit(self) -> None:
        """Emit the launch."""
        plan, tokens = self.plan, self.tokens
        grid = [ceil_div(tokens.tokens, plan.rows), ceil_div(self.rows, plan.columns)]
        with launch(grid, [plan.threads]) as (down, across, thread):
            first = bind(across * plan.columns)
            place = Corner(thread, bind(down * plan.rows), first)
            near = None if self.b is None else plan.near(place, tokens.down)
            finish = partial(self._finish, first, near)
            plan.emit(place, fours(tokens.words), tokens.columns // TILE, self.packed, finish)

    def _finish(self, first: Expr, near: tuple[Buffer, Expr] | None, share: Share) -> None:
        """Emit scale, adapters, residual and store; `near` is as of `Plan.near`."""
        tokens = self.tokens
        row = bind(first + share.vector * LANES)
        inside = row
        if self.rows % self.plan.columns:
            inside = bind(tirx.min(row, self.rows - LANES))
        scale = bind(by_segment(self.parts, inside, lambda p: self.scales[p.index]))
        rows = share.rows
        out = registers([len(rows)], f"float32x{LANES}")
        for i, (token, sums) in enumerate(zip(rows, share.sums(), strict=True)):
            # Codes are W + 1, so the sum of the integers comes off.
            total, step = bind(tokens.sum[token]), bind(tokens.step[token])
            exact = [T.cast(s - total, "float32") for s in sums]
            T.buffer_store(out, four(exact) * splat(step * scale, LANES), [i])
        if near is not None:
            down, begin = near
            own = [row - begin for row in rows]
            adapter.add(out, [adapter.Up(self.parts, self.b, inside)], down, own)
        if self.residual is not None:
            last, column = shape(self.y)[0] - 1, bind(inside // LANES)
            for i, token in enumerate(rows):
                kept = fours(self.residual)[tirx.min(token, last), column]
                T.buffer_store(out, out[i] + kept, [i])
        share.store(fours(self.y), row // LANES, out)
