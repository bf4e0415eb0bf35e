"""Dropout on an adapter's input, from a counter: the mask is a function of seed and place.

Nothing is stored: forward, recomputation and adjoint derive the same mask, and a resumed run
derives the mask that the interrupted one would have had. The generator is the 32-bit finaliser
`lowbias32` of C. Wellons ("Prospecting for Hash Functions", 2018).
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, te, tirx

from .emit import Parameters, emit, emit_differentiable, register_adjoint


def lowbias32(value: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return the hash of a uint32."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = value ^ (value >> tirx.const(shift, "uint32"))
        # In 64 bits: TVM takes a product of uint32 for one that never overflows.
        wide = tirx.Cast("uint64", mixed) * tirx.const(factor, "uint64")
        value = tirx.Cast("uint32", wide & tirx.const(0xFFFFFFFF, "uint64"))
    return value ^ (value >> tirx.const(16, "uint32"))


def _masked(x: te.Tensor, seed: te.Tensor, salt: int, probability: float) -> te.Tensor:
    threshold = tirx.const(min(round(probability * 2**32), 2**32 - 1), "uint32")
    kept = tirx.const(1.0 / (1.0 - probability), "float32")

    def element(t: tirx.Var, k: tirx.Var) -> tirx.PrimExpr:
        place = tirx.Cast("uint32", t * x.shape[1] + k)
        key = lowbias32(
            tirx.Cast("uint32", seed[0]) ^ tirx.const(salt * 0x9E3779B9 % 2**32, "uint32")
        )
        return tirx.if_then_else(
            lowbias32(place ^ key) >= threshold, x[t, k] * kept, tirx.const(0.0, "float32")
        )

    return te.compute(x.shape, element, "dropout")


def dropout(
    bb: relax.BlockBuilder, x: relax.Expr, seed: relax.Expr, salt: int, probability: float
) -> relax.Var:
    """Emit ``x[t, k] / (1 - p)`` with probability 1 - p, else 0.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    x : relax.Expr
        ``(T, K)`` float32.
    seed : relax.Expr
        ``(1,)`` int32, different for each layer and micro-batch.
    salt : int
        Distinguishes the uses inside one layer.
    probability : float
        p in (0, 1).

    Returns
    -------
    relax.Var
        ``(T, K)`` float32.
    """
    parameters = {"salt": salt, "probability": probability}
    return emit_differentiable(
        bb, "dropout", lambda x, seed: _masked(x, seed, salt, probability), [x, seed], parameters
    )


@register_adjoint("dropout")
def _adjoint(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    salt, probability = int(parameters["salt"]), float(parameters["probability"])
    seed = arguments[1]
    dx = emit(
        bb,
        "dropout",
        lambda dy, seed: _masked(dy, seed, salt, probability),
        [dy, seed],
        parameters,
    )
    return [dx, None]
