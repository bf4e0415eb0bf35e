"""How a tensor expression becomes a call in a Relax function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi
from tvm import relax, tirx

Parameters = dict[str, Any]
Compute = Callable[..., Any]
Adjoint = Callable[
    [relax.BlockBuilder, relax.Var, Sequence[relax.Expr], Parameters], list[relax.Expr | None]
]


def attributes(kernel: str, parameters: Parameters) -> dict[str, Any]:
    """Return the PrimFunc attributes by which the schedule rules recognise a kernel."""
    # Pattern 8 is "opaque": operator fusion must not swallow a kernel that a rule looks for.
    return {"fabric.kernel": kernel, "fabric.params": parameters, "op_pattern": 8}


def emit(
    bb: relax.BlockBuilder,
    kernel: str,
    compute: Compute,
    arguments: Sequence[relax.Expr],
    parameters: Parameters | None = None,
) -> relax.Var:
    """Emit a kernel that has no gradient; several outputs come back as a tuple variable."""
    call = bb.call_te(
        compute,
        *arguments,
        primfunc_name_hint=f"{kernel}_kernel",
        primfunc_attrs=attributes(kernel, parameters or {}),
    )
    return bb.emit(call)


def emit_inplace(
    bb: relax.BlockBuilder,
    kernel: str,
    function: tirx.PrimFunc,
    arguments: Sequence[relax.Expr],
    inplace: Sequence[int],
    parameters: Parameters | None = None,
) -> relax.Var:
    """Emit a PrimFunc that overwrites the arguments at the indices `inplace`.

    The function takes each argument once and has no output parameters: at run time
    ``call_tir_inplace`` passes the arguments alone.
    """
    function = function.with_attrs(attributes(kernel, parameters or {}))
    outputs = [arguments[index].ty for index in inplace]
    call = relax.op.call_tir_inplace(
        bb.add_func(function, kernel), list(arguments), list(inplace), outputs
    )
    return bb.emit(call)


def emit_differentiable(
    bb: relax.BlockBuilder,
    kernel: str,
    compute: Compute,
    arguments: Sequence[relax.Expr],
    parameters: Parameters | None = None,
) -> relax.Var:
    """Emit a kernel whose adjoint was given by :func:`register_adjoint` under the same name."""
    parameters = parameters or {}
    call = bb.call_te(
        compute,
        *arguments,
        primfunc_name_hint=f"{kernel}_kernel",
        primfunc_attrs=attributes(kernel, parameters),
    )
    return bb.emit(
        relax.op.call_tir_with_grad(
            call.args[0],
            call.args[1],
            call.ty_args[0],
            te_grad_name=f"fabric_{kernel}",
            te_grad_kwargs=parameters,
        )
    )


def register_adjoint(kernel: str) -> Callable[[Adjoint], Adjoint]:
    """Register the adjoint of a kernel with Relax's ``Gradient`` pass.

    The decorated function is given the builder, the output's adjoint, the forward arguments and
    the kernel's parameters; it returns one adjoint for each argument, None where the argument is
    frozen.
    """

    def register(adjoint: Adjoint) -> Adjoint:
        def handler(
            _output: relax.Var, call: relax.Call, gradient: relax.Var, bb: relax.BlockBuilder
        ) -> relax.Var:
            parameters = {str(k): v for k, v in call.attrs.te_grad_kwargs.items()}
            adjoints = adjoint(bb, gradient, list(call.args[1]), parameters)
            # A frozen argument's adjoint is never read; a scalar keeps the tuple's arity.
            frozen = relax.op.zeros((), "float32")
            return bb.emit(relax.Tuple([frozen if a is None else a for a in adjoints]))

        tvm_ffi.register_global_func(
            f"tvm.relax.te_grad._register.fabric_{kernel}", handler, override=True
        )
        return adjoint

    return register
