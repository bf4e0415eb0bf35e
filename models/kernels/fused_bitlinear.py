"""BitLinear with what stands before and after it in a layer, as one kernel.

A single token is so little work that each kernel costs more to start than to run; of many, what
comes before a product and after it need not go through memory. In order,

    h = act(gate) * up              where x holds the gate and up
    h = h / rms(h) * weight         where there is a norm
    y = bitlinear(h)                its projections and adapters
    y = y + residual                where the block ends

with each line as in `gated.py`, `norm.py` and `bitlinear.py`. The adjoint computes h again.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax, te

from .bitlinear import LinearGroup, projected
from .bitlinear_vjp import input_adjoint
from .emit import Parameters, emit_differentiable, register_adjoint
from .gated import gated, gated_activation, gated_activation_vjp
from .norm import Norm, normalised, rms_norm_vjp


def fused_bitlinear(
    bb: relax.BlockBuilder,
    x: relax.Expr,
    packed: relax.Expr,
    scale: relax.Expr,
    group: LinearGroup,
    adapter: tuple[relax.Expr, relax.Expr] | None = None,
    lora_scale: float = 1.0,
    *,
    activation: str | None = None,
    norm: Norm | None = None,
    residual: relax.Expr | None = None,
) -> relax.Var:
    """Emit a group of BitLinear projections with their surroundings.

    Parameters
    ----------
    bb : relax.BlockBuilder
        The builder of the surrounding function.
    x : relax.Expr
        ``(T, K)`` float32; with an activation ``(T, 2 K)``, the gate's half first.
    packed, scale, group, adapter, lora_scale
        As in :func:`bitlinear`.
    activation : str, optional
        Of the gate: ``"silu"`` or ``"relu2"``.
    norm : Norm, optional
        The normalisation of the projections' input.
    residual : relax.Expr, optional
        ``(T, N)`` float32, added to the result.

    Returns
    -------
    relax.Var
        ``(T, N)`` float32.
    """
    parameters = group.parameters(lora_scale)
    if activation is not None:
        parameters["activation"] = activation
    if norm is not None:
        parameters["epsilon"] = norm.epsilon
    if residual is not None:
        parameters["residual"] = 1

    def compute(x: te.Tensor, packed: te.Tensor, scale: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        left = list(rest)
        h = x if activation is None else gated(x, activation)
        if norm is not None:
            h = normalised(h, left.pop(0), norm.epsilon)
        y = projected(h, packed, scale, left[:2] if adapter is not None else (), parameters)
        if residual is None:
            return y
        return te.compute(y.shape, lambda t, n: y[t, n] + left[-1][t, n], "residual")

    arguments = [x, packed, scale, *([] if norm is None else [norm.weight]), *(adapter or ())]
    arguments += [] if residual is None else [residual]
    return emit_differentiable(bb, "fused_bitlinear", compute, arguments, parameters)


@register_adjoint("fused_bitlinear")
def _adjoint(
    bb: relax.BlockBuilder, dy: relax.Var, arguments: Sequence[relax.Expr], parameters: Parameters
) -> list[relax.Expr | None]:
    x, packed, scale, *rest = arguments
    adjoints: list[relax.Expr | None] = [dy] if "residual" in parameters else []
    adapter = rest[1 if "epsilon" in parameters else 0 : len(rest) - len(adjoints)]
    activation = str(parameters["activation"]) if "activation" in parameters else None
    gate = x if activation is None else gated_activation(bb, x, activation)
    norm = Norm(rest[0], float(parameters["epsilon"])) if "epsilon" in parameters else None
    inside = norm if adapter else None
    dx, *factors = input_adjoint(bb, dy, gate, packed, scale, parameters, adapter, inside)
    if norm is not None:
        dx = rms_norm_vjp(bb, dx, gate, norm.weight, norm.epsilon)
    if activation is not None:
        dx = gated_activation_vjp(bb, dx, x, activation)
    frozen = [None, None] if norm is None else [None, None, None]
    return [dx, *frozen, *factors, *adjoints]
