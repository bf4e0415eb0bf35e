"""What a layer's adjoint computes again, and what the forward pass keeps for it instead.

The graph's adjoint begins with the layer's forward pass once more, so that a layer's input is all
that training has to keep. Here results of the costly kernels become results of the forward pass and
parameters of the adjoint; what only led to them is dead code there. No loss changes by a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from ..models.config import ModelConfig
from ..models.graph import KEPT, activation_widths, head_tensors, layer_tensors
from ..targets import Target
from .differentiate import ADJOINT, FORWARD, kernel_of
from .options import CompileOptions
from .sizes import tensor_bytes

COSTLY = ("bitlinear", "fused_bitlinear", "dense", "attention")
"""Kernels whose results are worth keeping: the others pass over what they read once."""
PLACES: dict[str, tuple[str, ...]] = {
    "none": ("qkv", "attention", "o", "gate_up"),
    "feed-forward": ("qkv", "attention", "o"),
    "wide": ("attention", "o"),
    "all": (),
}
"""What the forward pass keeps for each way to recompute, from the most to nothing."""
SHARE = {"cpu": 1 / 4, "gpu": 1 / 2}
"""Most of the model's own size that is kept where nobody chose. A graphics processor's launches and
small products cost more than those of a processor, which has less memory to give, too."""


def way_to_recompute(config: ModelConfig, target: Target, options: CompileOptions) -> str:
    """Return what is recomputed, a key of `PLACES`.

    Parameters
    ----------
    config : ModelConfig
        The model.
    target : Target
        Where it runs.
    options : CompileOptions
        With ``"auto"`` as much is kept as a share of the model's own size holds, and nothing where
        layers are streamed or one layer's gradients kept.
    """
    if options.recompute != "auto":
        return options.recompute
    if options.saves_memory:
        return "all"
    model = config.num_layers * tensor_bytes(layer_tensors(config, options.packing))
    model += tensor_bytes(head_tensors(config, options.formats.head))
    room = SHARE[target.family] * model / config.num_layers
    return next(way for way in PLACES if sum(kept_sizes(config, options, way)) <= room)


def kept_sizes(config: ModelConfig, options: CompileOptions, way: str) -> list[int]:
    """Return the bytes of each activation that a layer keeps of one micro-batch, float32."""
    widths = activation_widths(config)
    return [4 * options.context * options.micro_batch * widths[place] for place in PLACES[way]]


def keep_activations(module: tvm.IRModule, way: str) -> tvm.IRModule:
    """Let ``layer_vjp`` take activations that the forward pass gives.

    Parameters
    ----------
    module : tvm.IRModule
        Holds ``layer_forward`` and ``layer_vjp(*layer_forward's parameters, dy)``.
    way : str
        What is recomputed, a key of `PLACES`.

    Returns
    -------
    tvm.IRModule
        The module with ``layer_forward_kept(...) -> (y, *kept)`` and ``layer_vjp(..., dy, *kept)``;
        the same where nothing is kept.
    """
    if not PLACES[way]:
        return module
    forward = module[FORWARD]
    costly = [b.var for b in _bindings(forward) if kernel_of(module, b.value)[0] in COSTLY]
    # The last is the layer's own result, and no use to its adjoint.
    names = PLACES["none"]
    if len(costly) != len(names) + 1:
        raise AssertionError(f"a layer has {len(costly)} costly kernels")
    kept = [var for name, var in zip(names, costly, strict=False) if name in PLACES[way]]
    builder = relax.BlockBuilder(module)
    builder.add_func(_giving(forward, kept), KEPT)
    adjoint = _taking(builder.get(), kept)
    builder = relax.BlockBuilder(_without(builder.get(), ADJOINT))
    builder.add_func(adjoint, ADJOINT)
    return builder.get()


def _bindings(function: relax.Function) -> list[Any]:
    return [binding for block in function.body.blocks for binding in block.bindings]


def _without(module: tvm.IRModule, name: str) -> tvm.IRModule:
    functions = {var: f for var, f in module.functions.items() if var.name_hint != name}
    return tvm.IRModule(functions, attrs=module.attrs)


def _giving(forward: relax.Function, kept: list[relax.Var]) -> relax.Function:
    """Return the forward pass with the kept activations behind its result."""
    positions = [[b.var.same_as(var) for b in _bindings(forward)].index(True) for var in kept]
    copy = relax.utils.copy_with_new_vars(forward)
    inside = [binding.var for binding in _bindings(copy)]
    builder = relax.BlockBuilder()
    with builder.function("kept", list(copy.params)):
        with builder.dataflow():
            for binding in _bindings(copy):
                builder.emit_normalized(binding)
            fields = [copy.body.body, *(inside[place] for place in positions)]
            out = builder.emit_output(relax.Tuple(fields))
        builder.emit_func_output(out)
    return builder.get()["kept"].with_attr("global_symbol", KEPT)


def _taking(module: tvm.IRModule, kept: list[relax.Var]) -> relax.Function:
    """Return the adjoint with the kept activations as its last parameters."""
    adjoint = module[ADJOINT]
    found = _recomputed(module[FORWARD], adjoint)
    parameters = [relax.Var(f"kept{i}", var.ty) for i, var in enumerate(kept)]
    replaced = [
        (again, parameter)
        for again, original in found
        for var, parameter in zip(kept, parameters, strict=True)
        if original.same_as(var)
    ]
    body = _Replace(module, replaced).visit_expr(adjoint.body)
    return relax.Function([*adjoint.params, *parameters], body, adjoint.ret_ty, attrs=adjoint.attrs)


def _recomputed(
    forward: relax.Function, adjoint: relax.Function
) -> list[tuple[relax.Var, relax.Var]]:
    """Pair what the adjoint computes again with what the forward pass computed."""
    known = {_key(binding.value, lambda var: var): binding.var for binding in _bindings(forward)}
    same = dict(zip(adjoint.params, forward.params, strict=False))
    pairs = []
    for binding in _bindings(adjoint):
        original = known.get(_key(binding.value, lambda var: same.get(var, var)))
        if original is not None:
            same[binding.var] = original
            pairs.append((binding.var, original))
    return pairs


def _key(value: relax.Expr, of: Callable[[relax.Var], Any]) -> tuple[Any, ...]:
    """Return what makes two values the same: an operator and what it is given."""
    if isinstance(value, relax.Var | relax.GlobalVar):
        return (of(value),)
    if isinstance(value, relax.Call):
        # `Gradient` has taken the marks off the adjoint's calls.
        name = str(getattr(value.op, "name", value.op)).removesuffix("_with_grad")
        return (name, *(_key(argument, of) for argument in value.args))
    if isinstance(value, relax.Tuple):
        return ("tuple", *(_key(field, of) for field in value.fields))
    return (value,)


@mutator
class _Replace(PyExprMutator):
    """Puts other variables in the place of some."""

    def __init__(self, module: tvm.IRModule, pairs: list[tuple[relax.Var, relax.Var]]) -> None:
        super().__init__(module)
        self.pairs = pairs

    def visit_dataflow_var_(self, var: relax.DataflowVar) -> relax.Expr:
        for old, new in self.pairs:
            if old.same_as(var):
                return new
        return super().visit_dataflow_var_(var)
