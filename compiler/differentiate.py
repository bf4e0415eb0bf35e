"""From ``layer_forward`` to ``layer_vjp``: the adjoint that Relax's ``Gradient`` derives.

The objective is ``sum(layer_forward(x, ...) * dy)``, whose gradient is the vector-Jacobian product
with dy. The objective's own value is never used, so the last product of the forward pass is dead
code and goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from ..models.kernels.gated import gated_norm_vjp
from ..models.kernels.norm import Norm, rms_norm_vjp

FORWARD = "layer_forward"
ADJOINT = "layer_vjp"


@mutator
class _DropGradientMark(PyExprMutator):
    """Rewrites ``call_tir_with_grad``, which code generation does not take, to ``call_tir``."""

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if getattr(call.op, "name", "") == "relax.call_tir_with_grad":
            return relax.Call(tvm.ir.Op.get("relax.call_tir"), call.args, None, list(call.ty_args))
        return call


@mutator
class _DropOnes(PyExprMutator):
    """Rewrites a product with ones to its other factor.

    The objective's own adjoint is a one for every element of the output: a constant as large as
    that, which folding would put into the module and into the device's memory.
    """

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if getattr(call.op, "name", "") == "relax.multiply":
            for factor, other in (call.args, reversed(call.args)):
                if self._is_ones(factor) and factor.ty == other.ty:
                    return other
        return call

    def _is_ones(self, value: relax.Expr) -> bool:
        if isinstance(value, relax.Var):
            value = self.lookup_binding(value)
        name = getattr(getattr(value, "op", None), "name", "")
        if name == "relax.broadcast_to":
            return self._is_ones(value.args[0])
        return name == "relax.ones"


@mutator
class _WidenNorms(PyExprMutator):
    """Rewrites the adjoint of a norm and what takes it to one kernel.

    That is the sum with something else, for what goes through a norm and past it as every residual
    does; and the adjoint of a gate whose result the norm was of.
    """

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if getattr(call.op, "name", "") == "relax.add":
            for term, other in (call.args, reversed(call.args)):
                found = self._norm(term)
                if found is not None:
                    (dy, x, weight), epsilon = found
                    return rms_norm_vjp(self.builder_, dy, x, weight, epsilon, other)
        gate = self._kernel(call, "gated_activation_vjp")
        if gate is not None:
            inner, gate_up = call.args[1]
            found = self._norm(inner)
            if found is not None:
                (dy, x, weight), epsilon = found
                before = self._bound(x)
                of_gate = self._kernel(before, "gated_activation") is not None
                if of_gate and before.args[1][0].same_as(gate_up):
                    norm = Norm(weight, epsilon)
                    return gated_norm_vjp(self.builder_, dy, gate_up, norm, str(gate["kind"]))
        return call

    def _bound(self, value: relax.Expr) -> relax.Expr:
        """Return what a variable stands for, through the fields of tuples."""
        while isinstance(value, relax.Var | relax.TupleGetItem):
            if isinstance(value, relax.Var):
                found = self.lookup_binding(value)
            else:
                fields = self._bound(value.tuple_value)
                found = fields.fields[value.index] if isinstance(fields, relax.Tuple) else None
            if found is None:
                break
            value = found
        return value

    def _norm(self, value: relax.Expr) -> tuple[list[relax.Expr], float] | None:
        """Return the arguments and the epsilon of the adjoint of a norm; None of anything else."""
        call = self._bound(value)
        parameters = self._kernel(call, "rms_norm_vjp")
        if parameters is None or len(call.args[1]) > 3:
            return None
        return list(call.args[1]), float(parameters["epsilon"])

    def _kernel(self, call: relax.Expr, kernel: str) -> Mapping[str, Any] | None:
        """Return the parameters of a kernel that is called; None where it is another one."""
        name, parameters = kernel_of(self.builder_.get(), call)
        return parameters if name == kernel else None


def kernel_of(module: tvm.IRModule, value: relax.Expr) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the parameters of the kernel that a value calls; "" of anything else."""
    if not getattr(getattr(value, "op", None), "name", "").startswith("relax.call_tir"):
        return "", {}
    attributes = module[value.args[0]].attrs
    if "fabric.kernel" not in attributes:
        return "", {}
    return str(attributes["fabric.kernel"]), attributes["fabric.params"]


def _objective(forward: relax.Function) -> relax.Function:
    """Return ``(*params, dy) -> sum(forward(*params) * dy)``."""
    forward = relax.utils.copy_with_new_vars(forward)
    dy = relax.Var("dy", forward.ret_ty)
    bb = relax.BlockBuilder()
    with bb.function("objective", [*forward.params, dy]):
        with bb.dataflow():
            for block in forward.body.blocks:
                for binding in block.bindings:
                    bb.emit_normalized(binding)
            weighted = bb.emit(relax.op.multiply(forward.body.body, dy))
            out = bb.emit_output(relax.op.sum(weighted))
        bb.emit_func_output(out)
    return bb.get()["objective"]


def differentiate(module: tvm.IRModule, inputs: int, fused: bool = False) -> tvm.IRModule:
    """Add ``layer_vjp(*layer_forward's parameters, dy)``.

    Parameters
    ----------
    module : tvm.IRModule
        Holds ``layer_forward``, one dataflow block long.
    inputs : int
        The first so many parameters are differentiated; the rest is frozen.
    fused : bool
        Whether the adjoint of a norm takes in what is added to it.

    Returns
    -------
    tvm.IRModule
        The module with ``layer_vjp``, which returns the tuple of the adjoints.
    """
    objective = _objective(module[FORWARD])
    module = tvm.IRModule(dict(module.functions.items()), attrs=module.attrs)
    module["objective"] = objective.with_attr("global_symbol", "objective")
    wanted = list(module["objective"].params)[:inputs]
    module = relax.transform.Gradient("objective", require_grads=wanted)(module)
    adjoint = module["objective_adjoint"]
    # (objective, (dx, dfactor, ...)) -> (dx, dfactor, ...)
    gradients = adjoint.body.body
    body = relax.SeqExpr(adjoint.body.blocks, _second_field(adjoint, gradients))
    vjp = relax.Function(adjoint.params, body, adjoint.ret_ty.fields[1], attrs=adjoint.attrs)
    del module["objective"]
    del module["objective_adjoint"]
    # Through a builder, so that the global variable carries the function's type for callers.
    builder = relax.BlockBuilder(module)
    builder.add_func(vjp.with_attr("global_symbol", ADJOINT), ADJOINT)
    module = _rewritten(builder.get(), _DropOnes, (ADJOINT,))
    return _rewritten(module, _WidenNorms, (ADJOINT,)) if fused else module


def _rewritten(
    module: tvm.IRModule, kind: type[PyExprMutator], names: tuple[str, ...] = ()
) -> tvm.IRModule:
    """Return the module with its Relax functions, or those of some names, through a mutator."""
    rewriter = kind(module)
    for name, function in module.functions.items():
        if isinstance(function, relax.Function) and name.name_hint in (names or (name.name_hint,)):
            rewriter.builder_.update_func(name, rewriter.visit_expr(function))
    return rewriter.builder_.get()


def _second_field(adjoint: relax.Function, result: relax.Expr) -> relax.Expr:
    """Return the gradients of an adjoint's result ``(objective, gradients)``."""
    if isinstance(result, relax.Tuple):
        return result.fields[1]
    for block in adjoint.body.blocks:
        for binding in block.bindings:
            if binding.var.same_as(result):
                return binding.value.fields[1]
    raise AssertionError("the result of an adjoint is a tuple")


def drop_gradient_marks(module: tvm.IRModule) -> tvm.IRModule:
    """Return the module with plain calls: the last step, once every adjoint is taken."""
    return _rewritten(module, _DropGradientMark)
