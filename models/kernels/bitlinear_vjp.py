"""The adjoint of BitLinear: the straight-through estimate, and the gradients of its adapter.

For ``y = scale (q W) + lora_scale (x' A^T) B`` the rounding of x is taken as the identity (Bengio
et al. 2013, arXiv 1308.3432), so that

    dx = scale (dy W)          dB = lora_scale (x' A^T)^T dy
    du = lora_scale dy B^T     dA = du^T x'          dx' = du A

and dx' is a part of dx where the adapter reads x itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, te, tirx

from .bitlinear import Segment, by_segment, down, packing_of, scale_at, segments, weight_at
from .emit import Parameters, emit, register_adjoint
from .norm import Norm, normalised


def _low_rank_gradient(
    dy: te.Tensor, b: te.Tensor, a: te.Tensor, parts: list[Segment], lora_scale: float
) -> te.Tensor:
    """Return du."""
    n = te.reduce_axis((0, parts[-1].end), "n")

    def term(t: tirx.Var, s: tirx.Var, j: tirx.Var) -> tirx.PrimExpr:
        adapter = by_segment(
            parts, n, lambda p: tirx.const(-1 if p.adapter is None else p.adapter, "int64")
        )
        column = by_segment(
            parts, n, lambda p: n - p.begin + p.column if p.adapter is not None else n * 0
        )
        return te.sum(
            tirx.if_then_else(
                adapter == s, lora_scale * dy[t, n] * b[j, column], tirx.const(0.0, "float32")
            ),
            axis=n,
        )

    return te.compute((dy.shape[0], a.shape[0], a.shape[1]), term, "lora_du")


def _adapter_gradients(
    dy: te.Tensor,
    x: te.Tensor,
    u: te.Tensor,
    du: te.Tensor,
    a: te.Tensor,
    b: te.Tensor,
    parts: list[Segment],
    lora_scale: float,
) -> tuple[te.Tensor, te.Tensor]:
    """Return dA and dB."""
    t = te.reduce_axis((0, dy.shape[0]), "t")
    da = te.compute(a.shape, lambda s, j, k: te.sum(du[t, s, j] * x[t, k], axis=t), "lora_da")
    r = te.reduce_axis((0, dy.shape[0]), "r")
    adapted = [p for p in parts if p.adapter is not None]

    def term(j: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
        # Column c of B belongs to the adapted segment whose columns hold it.
        row, index = c - adapted[-1].column + adapted[-1].begin, adapted[-1].adapter
        adapter = tirx.const(index, "int64")
        for part in reversed(adapted[:-1]):
            inside = c < part.column + part.end - part.begin
            row = tirx.Select(inside, c - part.column + part.begin, row)
            adapter = tirx.Select(inside, tirx.const(part.adapter, "int64"), adapter)
        return te.sum(lora_scale * u[r, adapter, j] * dy[r, row], axis=r)

    return da, te.compute(b.shape, term, "lora_db")


def adapter_adjoints(
    dy: te.Tensor,
    x: te.Tensor,
    base: te.Tensor,
    lora: Sequence[te.Tensor],
    parts: list[Segment],
    lora_scale: float,
) -> list[te.Tensor]:
    """Return the adjoints of x and of all of `lora`; `base` is x's through the frozen weights."""
    a, b = lora[:2]
    lora_input = lora[2] if len(lora) > 2 else x
    du = _low_rank_gradient(dy, b, a, parts, lora_scale)
    da, db = _adapter_gradients(dy, lora_input, down(lora_input, a), du, a, b, parts, lora_scale)
    s = te.reduce_axis((0, a.shape[0]), "s")
    j = te.reduce_axis((0, a.shape[1]), "j")
    through = te.compute(
        x.shape, lambda t, k: te.sum(du[t, s, j] * a[s, j, k], axis=[s, j]), "lora_dx"
    )
    if len(lora) > 2:
        return [base, da, db, through]
    dx = te.compute(x.shape, lambda t, k: base[t, k] + through[t, k], "dx")
    return [dx, da, db]


def bitlinear_vjp(
    bb: relax.BlockBuilder,
    dy: relax.Expr,
    x: relax.Expr,
    packed: relax.Expr,
    scale: relax.Expr,
    parameters: Parameters,
    adapter: tuple[relax.Expr, ...] = (),
    norm: Norm | None = None,
) -> relax.Var:
    """Emit the adjoint of :func:`bitlinear`.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    dy : relax.Expr
        ``(T, N)`` float32.
    x, packed, scale : relax.Expr
        As in :func:`bitlinear`.
    parameters : dict
        The group's static parameters.
    adapter : tuple of relax.Expr
        Nothing, ``(A, B)`` or ``(A, B, lora_input)``.
    norm : Norm, optional
        With A and B: the adapters' input is x after this norm, and dx its adjoint.

    Returns
    -------
    relax.Var
        ``dx (T, K)`` float32; with an adapter the tuple ``(dx, dA, dB)``, with a separate input
        of the adapter ``(dx, dA, dB, dlora_input)``.
    """
    parts = segments(parameters)
    lora_scale, packing = float(parameters["lora_scale"]), packing_of(parameters)
    columns = x.ty.shape[1]

    def straight_through(dy: te.Tensor, packed: te.Tensor, scale: te.Tensor) -> te.Tensor:
        n = te.reduce_axis((0, parts[-1].end), "n")
        return te.compute(
            (dy.shape[0], columns),
            lambda t, k: te.sum(
                dy[t, n]
                * scale_at(scale, parts, n)
                * tirx.Cast("float32", weight_at(packed, n, k, packing)),
                axis=n,
            ),
            "straight_through",
        )

    def compute(
        dy: te.Tensor, x: te.Tensor, packed: te.Tensor, scale: te.Tensor, *lora: te.Tensor
    ) -> te.Tensor | list[te.Tensor]:
        base = straight_through(dy, packed, scale)
        if norm is not None:
            x, lora = normalised(x, lora[0], norm.epsilon), lora[1:]
        if not lora:
            return base
        return adapter_adjoints(dy, x, base, lora, parts, lora_scale)

    arguments = [dy, x, packed, scale, *adapter]
    names = ("outputs", "adapted", "lora_scale", "packing")
    kept = {name: parameters[name] for name in names if name in parameters}
    if norm is not None:
        arguments.insert(4, norm.weight)
        kept["epsilon"] = norm.epsilon
    return emit(bb, "bitlinear_vjp", compute, arguments, kept)


def input_adjoint(
    bb: relax.BlockBuilder,
    dy: relax.Expr,
    x: relax.Expr,
    packed: relax.Expr,
    scale: relax.Expr,
    parameters: Parameters,
    adapter: Sequence[relax.Expr],
    norm: Norm | None = None,
) -> list[relax.Expr]:
    """Emit the adjoint of :func:`bitlinear` and return those of x and of all of `adapter`."""
    result = bitlinear_vjp(bb, dy, x, packed, scale, parameters, tuple(adapter), norm)
    if not adapter:
        return [result]
    return [bb.emit(relax.TupleGetItem(result, i)) for i in range(1 + len(adapter))]


@register_adjoint("bitlinear")
def _adjoint(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    x, packed, scale, *adapter = arguments
    dx, *factors = input_adjoint(bb, dy, x, packed, scale, parameters, adapter)
    return [dx, None, None, *factors]
