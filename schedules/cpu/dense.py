"""Linear layers of float16 weights with adapters, and their adjoint.

Forth, a result is a dot product along memory of both operands, whose halves are widened as they are
loaded; threads share the rows of the matrix. Back, panels of its columns are widened chunk by chunk
of rows, as ternary ones are unpacked. There is no float32 copy of a matrix either way.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..decisions import choose
from ..ternary import aligned, segments
from ..tir import Buffer, Expr, bind, build, load, loop, shape, store
from .bitlinear import Lora
from .bitlinear_vjp import Lora as Adjoint
from .bitlinear_vjp import Unpack, input_adjoint
from .isa import Isa
from .low_rank import dot_products
from .microkernel import Tile, row_tiles
from .vector_math import half_to_float


def products(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `dense`; None where a side of a projection is no multiple of 16."""
    parts = segments(parameters)
    if not _fits(parameters, function.params[1]):
        return None
    isa, scale = Isa(target), float(parameters["lora_scale"])

    def body(x: Buffer, weight: Buffer, *rest: Buffer) -> None:
        *adapter, y = rest
        (tokens, columns), lanes = shape(x), isa.lanes
        dot_products(
            isa,
            tokens,
            parts[-1].end,
            columns,
            lambda t, k: load(x, t, k, lanes=lanes),
            lambda n, k: _weights(isa, weight, n, k),
            lambda t, n, total: store(y, total, t, n),
        )
        if adapter:
            lora = Lora(isa, parts, scale, tokens, *adapter[:2])
            lora.down(adapter[2] if len(adapter) > 2 else x)
            _add_adapters(isa, lora, y)

    return build(function, body)


def products_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `dense_vjp`; None where a side of a projection is no multiple of 16."""
    parts = segments(parameters)
    if not _fits(parameters, function.params[2]):
        return None
    isa, scale = Isa(target), float(parameters["lora_scale"])

    def body(dy: Buffer, x: Buffer, weight: Buffer, *rest: Buffer) -> None:
        def weights_of(column: Expr, wide: int) -> Unpack:
            def unpack(to: Buffer, row: Expr, rows: Expr) -> None:
                with loop(rows) as r:
                    for v in range(wide):
                        place = v * isa.lanes
                        store(to, _weights(isa, weight, row + r, column + place), r, place)

            return unpack

        depth = parts[-1].end
        if len(rest) == 1:
            input_adjoint(isa, depth, dy, rest[0], None, weights_of)
            return
        separate = len(rest) == 7
        a, b, lora_input = rest[0], rest[1], rest[2] if separate else x
        outputs = rest[3:] if separate else rest[2:]
        lora = Adjoint(isa, parts, scale, dy, lora_input, a, b)
        lora.thin_products()
        input_adjoint(isa, depth, dy, outputs[0], None if separate else lora, weights_of)
        lora.gradients(*outputs[1:])

    return build(function, body)


def _fits(parameters: dict[str, Any], weight: tirx.Var) -> bool:
    return aligned(segments(parameters)) and int(weight.shape[1]) % 8 == 0


def _weights(isa: Isa, weight: Buffer, row: Expr, column: Expr) -> Expr:
    words = load(weight, row, column // 2, lanes=isa.lanes // 2)
    return half_to_float(T.reinterpret(f"float16x{isa.lanes}", words), isa.native_half)


def _add_adapters(isa: Isa, lora: Lora, y: Buffer) -> None:
    """Emit the sum of y and the adapters' outputs."""
    lanes, (tokens, rows) = isa.lanes, shape(y)
    height, width = choose("tile", isa.tiles, isa.tile)

    def panel(first: Expr, wide: int) -> None:
        columns = [bind((first + v) * lanes) for v in range(wide)]

        def tile(token: Expr, high: int) -> None:
            sums = Tile(high, wide, lanes)
            sums.fill(lambda i, v: load(y, token + i, columns[v], lanes=lanes))
            lora.up(sums, token, columns)
            sums.store(lambda i, v: (y, token + i, columns[v]))

        row_tiles(tokens, height, tile)

    row_tiles(rows // lanes, width, panel, parallel=True)
