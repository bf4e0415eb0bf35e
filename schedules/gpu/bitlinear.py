"""The forward pass of a group of ternary projections with their adapters.

Many tokens take two launches: one quantises them and multiplies them with the adapters' factor A,
the other is the product. A single token takes one, unless the adapters are large. What a fused
kernel has before the quantisation and after the product is part of the same launches.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ...targets import Target
from ..linear import Linear
from ..ternary import aligned, segments
from ..tir import Buffer, branch, shape, static
from .kernel import Gpu, build
from .quantise import Tokens
from .single_token import MOST, SingleToken, fits
from .ternary_product import Product
from .ternary_rows import RowProduct, Stored, layout
from .ternary_tile import choose, cores, is_large

FEW = 4
"""Up to this many tokens the matrix streams by; from there on tiles of outputs reuse it."""
CACHED = 16
"""Bytes of A that a work-group may read from a large device's cache for each of the matrix."""
SMALL_CACHED = 2
"""The same on other devices."""


GATED = 3
"""The part of the usual work-groups that there are by default on Hopper where each has a gate."""
BRISK = 128
"""Threads of the others there: more would wait longer for each other than they save."""


def few_tokens(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `bitlinear`, or `fused_bitlinear`, by rows.

    None for many or unknown tokens, or rows in no tiles of 16.
    """
    parts = segments(parameters)
    count = static(function.params[0].shape[0])
    if not aligned(parts) or count is None or count > FEW:
        return None
    gpu = Gpu(target)

    def body(*buffers: Buffer) -> None:
        linear = Linear.of(parameters, buffers)
        groups, most = cores(gpu), gpu.threads
        if gpu.warpgroups and linear.activation:
            # Each work-group gates, weighs and quantises twice as many columns as it has rows.
            groups //= GATED
        elif gpu.warpgroups:
            most = BRISK
        plan = layout(gpu, parts, linear.packing.words(linear.columns), groups, most)
        product = RowProduct(plan, linear)

        def two() -> None:
            tokens = Tokens.of(gpu, linear, 1)
            tokens.emit(linear.lora_scale)
            product.emit(Stored(tokens))

        def one() -> None:
            product.emit(SingleToken(gpu, plan, linear))

        if count > 1 or linear.lora_input is not None or not fits(gpu, linear.columns):
            two()
        elif linear.a is None:
            one()
        else:
            ranks = min(MOST, plan.tiles * (CACHED if is_large(gpu) else SMALL_CACHED))
            branch(shape(linear.a)[1] <= ranks, one, two)

    return build(function, body)


def tiles(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `bitlinear`, or `fused_bitlinear`, by tiles.

    None where a projection is no multiple of 16 rows.
    """
    parts = segments(parameters)
    if not aligned(parts):
        return None
    gpu = Gpu(target)

    def body(*buffers: Buffer) -> None:
        linear = Linear.of(parameters, buffers)
        tile = choose(gpu, shape(linear.x)[0], parts[-1].end)
        tokens = Tokens.of(gpu, linear, tile.height)
        tokens.emit(linear.lora_scale)
        rest = linear.b, linear.y, linear.residual
        Product(tile, parts, linear.packed, linear.scales, tokens, *rest).emit()

    return build(function, body)
