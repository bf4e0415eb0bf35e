"""The host's side of a kernel: its lowered TIR, interpreted over numpy arrays."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from bitfabric.compiler.device_code import flattened, loops
from tvm import tirx
from tvm.tirx import transform

BINARY = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "FloorDiv": operator.floordiv,
    "FloorMod": operator.mod,
    "Min": min,
    "Max": max,
    "LT": operator.lt,
    "LE": operator.le,
    "EQ": operator.eq,
}
Launch = Callable[[str, list[np.ndarray | int], list[int]], None]
"""``launch(kernel, arguments, extents)``; the extents are those of the grid, then the threads."""


def host_function(
    function: tirx.PrimFunc, target: tvm.target.Target, name: str = "main"
) -> tirx.PrimFunc:
    """Return what is left of a scheduled kernel when its launches have become calls.

    These begin with its name.
    """
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    module = flattened(transform.BindTarget(target)(module))
    split = [transform.AnnotateEntryFunc(), transform.SplitHostDevice()]
    return tvm.transform.Sequential([*loops(), *split])(module)[name]


class Host:
    """The interpreter.

    Parameters
    ----------
    function : PrimFunc
        Of :func:`host_function`.
    launch : callable
        What a launch does.
    """

    def __init__(self, function: tirx.PrimFunc, launch: Launch) -> None:
        self.function, self.launch = function, launch

    def __call__(self, arrays: Sequence[np.ndarray]) -> None:
        """Run it on the arguments. Memory between launches begins as NaN."""
        self.numbers: dict[Any, int] = {
            extent: size
            for parameter, array in zip(self.function.params, arrays, strict=True)
            for extent, size in zip(parameter.shape, array.shape, strict=True)
            if isinstance(extent, tirx.Var)
        }
        self.memory = {
            self._key(parameter.data): array
            for parameter, array in zip(self.function.params, arrays, strict=True)
        }
        self._run(self.function.body)

    @staticmethod
    def _key(data: tirx.PrimExpr) -> int:
        return data.args[0].__chandle__()

    def _value(self, expr: tirx.PrimExpr) -> Any:
        kind = type(expr).__name__
        if kind == "IntImm":
            return expr.value
        if kind in BINARY:
            return BINARY[kind](self._value(expr.a), self._value(expr.b))
        if kind == "Call":
            return self.memory[self._key(expr)]
        return self.numbers[expr]

    def _run(self, node: tirx.Stmt) -> None:
        kind = type(node).__name__
        if kind == "SeqStmt":
            for each in node.seq:
                self._run(each)
        elif kind == "DeclBuffer":
            self.memory[self._key(node.buffer.data)] = self._value(node.data)
        elif kind == "AllocBuffer":
            buffer = node.buffer
            size = tvm.DataType(str(buffer.dtype)).itemsize * buffer.shape[0].value
            self.memory[self._key(buffer.data)] = np.full(size + 64, 255, "uint8")
        elif kind == "For":
            for i in range(node.extent.value):
                self.numbers[node.loop_var] = node.min.value + i
                self._run(node.body)
        elif kind == "IfThenElse":
            taken = node.then_case if self._value(node.condition) else node.else_case
            if taken is not None:
                self._run(taken)
        elif kind == "Bind":
            self.numbers[node.var] = self._value(node.value)
        elif kind == "Evaluate" and node.value.attrs is not None:
            self._launch(node.value)

    def _launch(self, call: tirx.Call) -> None:
        tags = list(call.attrs["launch_params"])
        name, values = call.args[0].value, [self._value(a) for a in call.args[1:]]
        extents = dict(zip(tags, values[-len(tags) :], strict=True))
        axes = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x")
        self.launch(name, values[: -len(tags)], [extents.get(axis, 1) for axis in axes])
