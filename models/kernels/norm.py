"""Root-mean-square normalisation (Zhang and Sennrich 2019, equation 4), with a frozen weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax, te, tirx

from .emit import Parameters, emit, emit_differentiable, register_adjoint


@dataclass(frozen=True)
class Norm:
    """A root-mean-square normalisation: its ``(K,)`` float32 weight and its epsilon."""

    weight: relax.Expr
    epsilon: float


def _inverse_rms(x: te.Tensor, epsilon: float) -> te.Tensor:
    rows, columns = x.shape
    k = te.reduce_axis((0, columns), "k")
    total = te.compute((rows,), lambda t: te.sum(x[t, k] * x[t, k], axis=k), "square_sum")
    return te.compute(
        (rows,),
        lambda t: 1.0 / tirx.sqrt(total[t] / tirx.Cast("float32", columns) + epsilon),
        "inverse_rms",
    )


def normalised(x: te.Tensor, weight: te.Tensor, epsilon: float) -> te.Tensor:
    """Return ``(T, H)`` x, each row over its root mean square and times the weight."""
    inverse = _inverse_rms(x, epsilon)
    return te.compute(x.shape, lambda t, k: x[t, k] * inverse[t] * weight[k], "rms_norm")


def rms_norm(
    bb: relax.BlockBuilder, x: relax.Expr, weight: relax.Expr, epsilon: float
) -> relax.Var:
    """Emit ``y[t, k] = x[t, k] / sqrt(mean_k(x[t]^2) + epsilon) * weight[k]``.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    x : relax.Expr
        ``(T, H)`` float32.
    weight : relax.Expr
        ``(H,)`` float32, frozen.
    epsilon : float
        Added to the mean square.

    Returns
    -------
    relax.Var
        ``(T, H)`` float32.
    """

    def compute(x: te.Tensor, weight: te.Tensor) -> te.Tensor:
        return normalised(x, weight, epsilon)

    return emit_differentiable(bb, "rms_norm", compute, [x, weight], {"epsilon": epsilon})


def norm_adjoint(dy: te.Tensor, x: te.Tensor, weight: te.Tensor, epsilon: float) -> te.Tensor:
    """Return ``(T, H)``, the adjoint of x for the one of :func:`normalised`."""
    rows, columns = x.shape
    inverse = _inverse_rms(x, epsilon)
    k = te.reduce_axis((0, columns), "k")
    dot = te.compute(
        (rows,), lambda t: te.sum(dy[t, k] * weight[k] * x[t, k], axis=k), "projection"
    )
    width = tirx.Cast("float32", columns)
    return te.compute(
        x.shape,
        lambda t, k: (
            inverse[t] * (dy[t, k] * weight[k] - x[t, k] * inverse[t] * inverse[t] * dot[t] / width)
        ),
        "rms_norm_vjp",
    )


def rms_norm_vjp(
    bb: relax.BlockBuilder,
    dy: relax.Expr,
    x: relax.Expr,
    weight: relax.Expr,
    epsilon: float,
    added: relax.Expr | None = None,
) -> relax.Var:
    """Emit ``dx = r (w dy - x r^2 mean_k(w dy x)) + added`` with ``r = 1 / rms(x)``.

    Shapes as above; `added` is what else x's adjoint consists of, nothing by default.
    """

    def compute(dy: te.Tensor, x: te.Tensor, weight: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        dx = norm_adjoint(dy, x, weight, epsilon)
        if not rest:
            return dx
        return te.compute(x.shape, lambda t, k: dx[t, k] + rest[0][t, k], "added")

    arguments = [dy, x, weight, *([] if added is None else [added])]
    return emit(bb, "rms_norm_vjp", compute, arguments, {"epsilon": epsilon})


@register_adjoint("rms_norm")
def _adjoint(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    x, weight = arguments
    return [rms_norm_vjp(bb, dy, x, weight, float(parameters["epsilon"])), None]
