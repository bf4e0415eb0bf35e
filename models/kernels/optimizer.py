"""Gradient accumulation, the gradient's norm, and AdamW (Loshchilov and Hutter 2019), in place."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .emit import emit, emit_inplace

HYPERPARAMETERS = (
    "learning_rate",
    "beta1",
    "beta2",
    "epsilon",
    "weight_decay",
    "gradient_scale",
    "correction1",
    "correction2",
)
"""Order of the ``(8,)`` float32 argument of :func:`adamw`; ``correction_i = 1 - beta_i^step``."""


def accumulate(
    bb: relax.BlockBuilder, totals: Sequence[relax.Expr], terms: Sequence[relax.Expr]
) -> relax.Var:
    """Emit ``total += term`` for each of several, float32 of any shapes, in place.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    totals, terms : sequence of relax.Expr
        As many of either, of the same shapes in order.

    Returns
    -------
    relax.Var
        The tuple of the totals; where there is one only, that.
    """
    shapes = [[int(extent) for extent in total.ty.shape] for total in totals]
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        destinations, sources = (
            [T.arg(f"{name}{i}", T.buffer(shape, "float32")) for i, shape in enumerate(shapes)]
            for name in ("total", "term")
        )
        for destination, source, shape in zip(destinations, sources, shapes, strict=True):
            with T.grid(*shape) as loops:
                indices = [loops] if isinstance(loops, tirx.Var) else list(loops)
                with T.sblock("accumulate"):
                    axes = [T.axis.spatial(n, i) for n, i in zip(shape, indices, strict=True)]
                    at = tuple(axes)
                    T.buffer_store(destination, destination[at] + source[at], list(at))
    places = list(range(len(totals)))
    return emit_inplace(bb, "accumulate", builder.get(), [*totals, *terms], places)


def sum_squares(bb: relax.BlockBuilder, gradient: relax.Expr) -> relax.Var:
    """Emit the ``(1,)`` float32 sum of squares of an ``(n,)`` float32 gradient."""

    def compute(gradient: te.Tensor) -> te.Tensor:
        i = te.reduce_axis((0, gradient.shape[0]), "i")
        return te.compute((1,), lambda _: te.sum(gradient[i] * gradient[i], axis=i), "sum_squares")

    return emit(bb, "sum_squares", compute, [gradient])


def adamw(
    bb: relax.BlockBuilder,
    buffers: Sequence[relax.Expr],
    hyper: relax.Expr,
) -> relax.Var:
    """Emit one AdamW step on flat buffers, in place, and clear the gradient.

    With ``g = gradient_scale * gradient``:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr weight_decay p - lr (m / correction1) / (sqrt(v / correction2) + epsilon)

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    buffers : sequence of relax.Expr
        Parameter, first moment, second moment and gradient: ``(n,)`` float32, all overwritten;
        the gradient with zeros.
    hyper : relax.Expr
        ``(8,)`` float32, see :data:`HYPERPARAMETERS`.

    Returns
    -------
    relax.Var
        The tuple of the four buffers.
    """

    (size,) = (int(extent) for extent in buffers[0].ty.shape)
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        names = ("parameter", "moment1", "moment2", "gradient")
        p, m, v, g = (T.arg(name, T.buffer((size,), "float32")) for name in names)
        h = T.arg("hyper", T.buffer((len(HYPERPARAMETERS),), "float32"))
        rate, beta1, beta2, epsilon, decay, clip, correction1, correction2 = (
            h[i] for i in range(len(HYPERPARAMETERS))
        )
        with T.serial(0, size) as loop, T.sblock("adamw"):
            i = T.axis.spatial(size, loop)
            T.buffer_store(m, beta1 * m[i] + (1.0 - beta1) * clip * g[i], [i])
            T.buffer_store(v, beta2 * v[i] + (1.0 - beta2) * clip * g[i] * (clip * g[i]), [i])
            step = rate * (m[i] / correction1) / (tirx.sqrt(v[i] / correction2) + epsilon)
            T.buffer_store(p, p[i] - rate * decay * p[i] - step, [i])
            T.buffer_store(g, tirx.const(0.0, "float32"), [i])
    return emit_inplace(bb, "adamw", builder.get(), [*buffers, hyper], [0, 1, 2, 3])
