"""A group of ordinary linear layers with LoRA: float16 weights, float32 sums.

    y = x W^T + lora_scale * (x' A^T) B            x' = dropout(x)
    dx = dy W + lora_scale (dy B^T) A

W is frozen. Groups, adapters and their gradients are those of `bitlinear.py`, whose product alone
is another one.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, te, tirx

from .bitlinear import LinearGroup, segments, with_adapters
from .bitlinear_vjp import adapter_adjoints
from .emit import Parameters, emit, emit_differentiable, register_adjoint


def weight_at(weight: te.Tensor, n: tirx.PrimExpr, k: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return the float32 value of row n, column k of a matrix in words of two float16."""
    shift = tirx.Cast("int32", tirx.floormod(k, 2)) * 16
    bits = tirx.Cast("uint16", (weight[n, tirx.floordiv(k, 2)] >> shift) & 0xFFFF)
    return tirx.Cast("float32", tirx.reinterpret("float16", bits))


def dense(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    weight: relax.Expr,
    group: LinearGroup,
    adapter: tuple[relax.Expr, relax.Expr] | None = None,
    lora_scale: float = 1.0,
    lora_input: relax.Expr | None = None,
) -> relax.Var:
    """Emit a group of linear layers with their adapters.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    x : relax.Expr
        ``(T, K)`` float32.
    weight : relax.Expr
        ``(N, K / 2)`` int32, the projections' rows one below the other: words of two float16.
    group, adapter, lora_scale, lora_input
        As in :func:`bitlinear`.

    Returns
    -------
    relax.Var
        ``(T, N)`` float32.
    """
    parameters = group.parameters(lora_scale)

    def compute(x: te.Tensor, weight: te.Tensor, *lora: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, x.shape[1]), "k")
        product = te.compute(
            (x.shape[0], weight.shape[0]),
            lambda t, n: te.sum(x[t, k] * weight_at(weight, n, k), axis=k),
            "product",
        )
        if not lora:
            return product
        inputs = lora[2] if len(lora) > 2 else x
        return with_adapters(product, inputs, lora[0], lora[1], parameters)

    arguments = [x, weight, *(adapter or ())]
    if adapter is not None and lora_input is not None:
        arguments.append(lora_input)
    return emit_differentiable(bb, "dense", compute, arguments, parameters)


def dense_vjp(
    bb: relax.BlockBuilder,
    dy: relax.Expr,
    x: relax.Expr,
    weight: relax.Expr,
    parameters: Parameters,
    adapter: Sequence[relax.Expr] = (),
) -> relax.Var:
    """Emit the adjoint of :func:`dense`.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    dy : relax.Expr
        ``(T, N)`` float32.
    x, weight : relax.Expr
        As in :func:`dense`.
    parameters : dict
        The group's static parameters.
    adapter : sequence of relax.Expr
        Nothing, ``(A, B)`` or ``(A, B, lora_input)``.

    Returns
    -------
    relax.Var
        ``dx (T, K)`` float32; with an adapter the tuple of it and the adjoints of `adapter`.
    """
    parts, lora_scale = segments(parameters), float(parameters["lora_scale"])

    def compute(
        dy: te.Tensor, x: te.Tensor, weight: te.Tensor, *lora: te.Tensor
    ) -> te.Tensor | list[te.Tensor]:
        n = te.reduce_axis((0, weight.shape[0]), "n")
        base = te.compute(
            x.shape,
            lambda t, k: te.sum(dy[t, n] * weight_at(weight, n, k), axis=n),
            "dense_dx",
        )
        return adapter_adjoints(dy, x, base, lora, parts, lora_scale) if lora else base

    names = ("outputs", "adapted", "lora_scale")
    kept = {name: parameters[name] for name in names}
    return emit(bb, "dense_vjp", compute, [dy, x, weight, *adapter], kept)


@register_adjoint("dense")
def _adjoint(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    x, weight, *adapter = arguments
    result = dense_vjp(bb, dy, x, weight, parameters, adapter)
    if not adapter:
        return [result, None]
    dx, *factors = (bb.emit(relax.TupleGetItem(result, i)) for i in range(1 + len(adapter)))
    return [dx, None, *factors]
