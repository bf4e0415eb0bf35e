"""Tiling to a device's largest buffer: every tensor above it becomes a tuple of windows.

Runs on scheduled kernels. A parameter, result or variable of a Relax function whose static size is
above the limit gets the tuple of its windows for a type, wherever it stands in other tuples; a
kernel is called with each window as an argument of its own. Sizes that are only known at run time
(tokens of a prompt, a cache's capacity) are kept below the limit by whoever chooses them.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax, tirx

from ..models.lora import AdapterLayout
from ..targets import FabricError, Target
from .windowed_kernel import split_kernel, window_shapes

MIB = 1 << 20
Expr = Any


def check_adapter(layout: AdapterLayout, target: Target) -> None:
    """Refuse an adapter whose buffer of one layer a target's kernels could not address.

    Raises
    ------
    FabricError
        If it is larger than the target's largest buffer: its factors share one.
    """
    limit, size = target.limits.max_buffer if target.limits else 0, 4 * layout.size
    if limit and size > limit:
        raise FabricError(
            f"An adapter of rank {layout.rank} takes {size / MIB:.0f} MiB a layer; "
            f"the largest buffer of {target.name} is {limit / MIB:.0f} MiB.",
            "Choose a smaller --lora-rank, or adapt fewer modules.",
        )


def split(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Return a module of scheduled kernels that needs no buffer above the target's limit.

    Every kernel computes what it did, bit for bit.

    Parameters
    ----------
    module : tvm.IRModule
        Relax functions and scheduled PrimFuncs.
    target : Target
        Whose ``limits.max_buffer`` counts; a processor has none.

    Raises
    ------
    FabricError
        If an operator that is no kernel takes or gives such a tensor.
    """
    if target.limits is None:
        return module
    limit = target.limits.max_buffer
    kernels = {
        name.name_hint: split_kernel(function, limit)
        for name, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    if all(kernel.same_as(module[name]) for name, (kernel, _) in kernels.items()):
        return module
    splitter = _Splitter(module, kernels, limit)
    for name, function in module.functions.items():
        if isinstance(function, relax.Function):
            splitter.function(name.name_hint)
    return splitter.builder.finalize()


class _Splitter:
    """Writes the Relax functions anew, callees first."""

    def __init__(
        self,
        module: tvm.IRModule,
        kernels: dict[str, tuple[tirx.PrimFunc, list[int]]],
        limit: int,
    ) -> None:
        self.builder = relax.BlockBuilder()
        self._module, self._limit = module, limit
        self._counts = {name: counts for name, (_, counts) in kernels.items()}
        self._names: dict[str, relax.GlobalVar] = {
            name: self.builder.add_func(kernel, name) for name, (kernel, _) in kernels.items()
        }
        self._values: dict[Any, Expr] = {}

    def function(self, name: str) -> relax.GlobalVar:
        """Write a function and those that it calls; returns its new name."""
        if name not in self._names:
            old = self._module[name]
            for callee in _callees(old):
                self.function(callee)
            self._names[name] = self._write(name, old)
        return self._names[name]

    def _write(self, name: str, old: relax.Function) -> relax.GlobalVar:
        bb = self.builder
        parameters = [relax.Var(p.name, self._type(p.ty)) for p in old.params]
        self._values.update(zip(old.params, parameters, strict=True))
        with bb.function(name, parameters, attrs=dict(old.attrs.items()) if old.attrs else None):
            for block in old.body.blocks:
                if isinstance(block, relax.DataflowBlock):
                    with bb.dataflow():
                        self._bindings(block)
                else:
                    self._bindings(block)
            return bb.emit_func_output(self._value(old.body.body))

    def _bindings(self, block: relax.BindingBlock) -> None:
        leaves = isinstance(block, relax.DataflowBlock)
        for binding in block.bindings:
            value = self._bound(binding.value)
            out = leaves and not isinstance(binding.var, relax.DataflowVar)
            emit = self.builder.emit_output if out else self.builder.emit
            self._values[binding.var] = emit(value, binding.var.name)

    def _windows(self, ty: tvm.ir.Type) -> list[relax.TensorType] | None:
        """Return the types of a tensor's windows; None where it is not split."""
        if not isinstance(ty, relax.TensorType) or ty.shape is None:
            return None
        shapes = window_shapes(ty.shape, str(ty.dtype), self._limit)
        return shapes and [relax.TensorType(shape, str(ty.dtype)) for shape in shapes]

    def _type(self, ty: tvm.ir.Type) -> tvm.ir.Type:
        if isinstance(ty, relax.TupleType):
            return relax.TupleType([self._type(field) for field in ty.fields])
        parts = self._windows(ty)
        return ty if parts is None else relax.TupleType(parts)

    def _value(self, value: Expr) -> Expr:
        """Return an expression without calls over the new variables."""
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self._value(field) for field in value.fields])
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self._value(value.tuple_value), value.index)
        if isinstance(value, tvm.ir.GenericConst) and self._windows(value.ty):
            return self._constant(value)
        return self._values.get(value, value)

    def _constant(self, value: tvm.ir.GenericConst) -> relax.Tuple:
        parts, place, flat = [], 0, value.value.numpy().reshape(-1)
        for part in self._windows(value.ty) or ():
            shape = [int(extent) for extent in part.shape]
            size = math.prod(shape)
            parts.append(relax.const(flat[place : place + size].reshape(shape), str(part.dtype)))
            place += size
        return relax.Tuple(parts)

    def _bound(self, value: Expr) -> Expr:
        """Return what a variable is bound to."""
        if not isinstance(value, relax.Call):
            return self._value(value)
        if isinstance(value.op, relax.GlobalVar):
            arguments = [self._value(argument) for argument in value.args]
            return relax.Call(self._names[value.op.name_hint], arguments)
        if value.op.name in ("relax.call_tir", "relax.call_tir_inplace"):
            return self._kernel_call(value)
        if any(self._windows(e.ty) for e in (value, *value.args)):
            raise FabricError(
                f"A tensor of {value.op.name} is larger than the target's largest buffer.",
                "Compile with a smaller --context or --micro-batch.",
            )
        arguments = [self._value(argument) for argument in value.args]
        return relax.Call(value.op, arguments, value.attrs, value.ty_args)

    def _kernel_call(self, call: relax.Call) -> Expr:
        """Return a call of a kernel; the results are put together as they were."""
        name, (arguments, *symbols) = call.args[0].name_hint, call.args[1:]
        flat: list[Expr] = []
        places = []
        for count, argument in zip(self._counts[name], arguments.fields, strict=False):
            value = self._value(argument)
            parts = [value]
            if isinstance(value, relax.Tuple):
                parts = list(value.fields)
            elif self._windows(argument.ty):
                parts = [
                    self.builder.emit(relax.TupleGetItem(value, i))
                    for i in range(len(value.ty.fields))
                ]
            assert len(parts) == count, f"{name} and its call disagree on windows"
            places.append(range(len(flat), len(flat) + count))
            flat += parts
        (given,) = call.ty_args
        outputs = list(given.fields) if isinstance(given, relax.TupleType) else [given]
        types = [part for output in outputs for part in self._windows(output) or [output]]
        kernel = self._names[name]
        if call.op.name == "relax.call_tir":
            new = relax.op.call_tir(kernel, flat, types, *symbols)
        else:
            # A new tensor, which no argument becomes, has the index -1.
            fresh = [[-1] * len(self._windows(output) or [output]) for output in outputs]
            indices = zip(map(int, call.attrs.inplace_indices), fresh, strict=True)
            index = [i for old, new in indices for i in (new if old < 0 else places[old])]
            new = relax.op.call_tir_inplace(kernel, flat, index, types, *symbols)
        return self._gathered(new, outputs, isinstance(given, relax.TupleType))

    def _gathered(self, call: Expr, outputs: list[relax.TensorType], several: bool) -> Expr:
        """Return the results of a call, of which those that are split come as tuples."""
        counts = [len(self._windows(output) or ()) for output in outputs]
        if not several or not any(counts):
            return call
        parts, fields, place = self.builder.emit(call), [], 0
        for count in counts:
            every = [relax.TupleGetItem(parts, place + i) for i in range(count or 1)]
            fields.append(relax.Tuple(every) if count else every[0])
            place += len(every)
        return relax.Tuple(fields)


def _callees(function: relax.Function) -> list[str]:
    """Return the names of the Relax functions that one calls."""
    found: list[str] = []

    def visit(node: Expr) -> None:
        if isinstance(node, relax.Call) and isinstance(node.op, relax.GlobalVar):
            found.append(node.op.name_hint)

    relax.analysis.post_order_visit(function, visit)
    return found
