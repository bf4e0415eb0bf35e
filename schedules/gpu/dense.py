"""Linear layers of float16 weights with adapters, and their adjoint.

The products are those of `gemm.py`, with the weights, two a word, as one factor: halves where the
device has them, else widened by integers on their way to shared memory. The adapters' products are
those of the ternary projections' adjoint; forth, their thin factor is a launch before the product,
whose end takes it in.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...targets import Target
from ..ternary import aligned, segments
from ..tir import Buffer, Expr, bind, shape
from .adapter import Up
from .bitlinear_vjp import Lora, with_adapter, without_adapter
from .elements import threads
from .gemm import Product, matmul
from .kernel import Gpu, build, elements, loop, registers, scratch
from .operand import HALF, HALVES, VECTOR, Operand, row_major, store_vector, zero_vector
from .table import widened
from .vectors import LANES, fours, lane

WORDS = "int32x2"
"""Four halves as memory holds them."""


def products(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `dense`; None where a projection is no multiple of 16 rows."""
    parts = segments(parameters)
    if not aligned(parts) or int(function.params[1].shape[1]) % 2:
        return None
    gpu, scale = Gpu(target), float(parameters["lora_scale"])

    def body(x: Buffer, weight: Buffer, *rest: Buffer) -> None:
        *adapter, y = rest
        (tokens, columns), u = shape(x), None
        if adapter:
            u = _thin(gpu, adapter[2] if len(adapter) > 2 else x, adapter[0], scale)

        def finish(t: Expr, n: Expr, value: Expr) -> None:
            if u is None:
                store_vector(y, value, t, n)
                return
            up, sums = Up(parts, adapter[1], n), registers([1], VECTOR)
            T.buffer_store(sums, value, [0])
            with loop(up.rank) as j:
                factor = T.broadcast(u[t, up.slot, j], LANES) * up.factor(j)
                T.buffer_store(sums, sums[0] + factor, [0])
            store_vector(y, sums[0], t, n)

        right = _weights(gpu, weight, along_depth=True)
        matmul(gpu, tokens, parts[-1].end, columns, row_major(x), right, finish)

    return build(function, body)


def products_vjp(
    function: tirx.PrimFunc, parameters: dict[str, Any], target: Target
) -> tirx.PrimFunc | None:
    """Lay out `dense_vjp`; None where a projection is no multiple of 16 rows."""
    parts = segments(parameters)
    if not aligned(parts) or int(function.params[2].shape[1]) % 2:
        return None
    gpu, scale = Gpu(target), float(parameters["lora_scale"])

    def body(dy: Buffer, x: Buffer, weight: Buffer, *rest: Buffer) -> None:
        (tokens, columns), right = shape(x), _weights(gpu, weight, along_depth=False)

        def product(beside: int = 0) -> Product:
            size = tokens, columns, parts[-1].end
            return Product(gpu, *size, row_major(dy), right, beside=beside)

        if len(rest) == 1:
            without_adapter(product(), rest[0])
            return
        separate = len(rest) == 7
        a, b, lora_input = rest[0], rest[1], rest[2] if separate else x
        lora = Lora(gpu, parts, scale, dy, lora_input, a, b)
        with_adapter(lora, product, rest[3:] if separate else rest[2:])

    return build(function, body)


def _weights(gpu: Gpu, weight: Buffer, along_depth: bool) -> Operand:
    """Return the matrix as the right factor: its columns are the depth, or else its rows are."""
    rows, words = shape(weight)

    def fetch(outer: Expr, depth: Expr) -> Expr:
        row, column = (outer, depth) if along_depth else (depth, outer)
        view = T.decl_buffer([rows, words // 2], WORDS, data=weight.data)
        return view[row, column // LANES]

    def unpack(fetched: Expr, outer: Expr, depth: Expr) -> list[Expr]:
        return [T.reinterpret(HALVES, fetched) if gpu.halves else widened(fetched)]

    element = HALF if gpu.halves else "float32"
    return Operand(fetch, along_depth, LANES, WORDS, unpack, element)


def _thin(gpu: Gpu, x: Buffer, a: Buffer, scale: float) -> Buffer:
    """Emit ``u (T, S, r) = scale x A^T``, a thread for each element; the rank may be open."""
    (tokens, columns), (adapters, rank, _) = shape(x), shape(a)
    u = scratch([tokens, adapters, rank])

    def element(index: Expr) -> None:
        j, rest = bind(index % rank), bind(index // rank)
        s, t = bind(rest % adapters), bind(rest // adapters)
        sums = registers([1], VECTOR)
        T.buffer_store(sums, zero_vector(), [0])
        with loop(columns // LANES) as k:
            T.buffer_store(sums, sums[0] + fours(x)[t, k] * fours(a)[s, j, k], [0])
        total = bind(sums[0])
        whole = (lane(total, 0) + lane(total, 1)) + (lane(total, 2) + lane(total, 3))
        T.buffer_store(u, whole * T.float32(scale), [t, s, j])

    elements(tokens * adapters * rank, threads(gpu), element)
    return u
