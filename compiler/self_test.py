"""The kernels of `runtime.self_test` as our own code generators write them, for any device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from ..schedules.gpu.kernel import barrier, dot4, launch, shared
from ..schedules.gpu.reduction import Reduction
from ..schedules.tir import Buffer, Expr, bind, when
from ..targets import Target
from .device_code import NAME as DEVICE_CODE
from .pipeline import tvm_target

Body = Callable[[Buffer, Buffer, Buffer, Expr, Expr], None]
"""``body(x, y, out, i, thread)`` emits what computes element i of `out`."""


def self_test_kernels(target: Target, threads: int, groups: int) -> dict[str, Any]:
    """Compile the kernels that a target can run.

    Parameters
    ----------
    target : Target
        A device's.
    threads, groups : int
        Threads of a work-group, and how many of these there are.

    Returns
    -------
    dict
        By name, functions ``kernel(x, y, out)`` over ``threads * groups`` elements.
    """
    bodies: dict[str, tuple[str, Body]] = {
        "floats": ("float32", _floats),
        "sums": ("float32", partial(_sums, threads)),
        "dots": ("int32", _dots),
    }
    if "fp16" in target.features:
        bodies["halves"] = ("float16", _halves)
    if "subgroup" in target.features:
        bodies["subgroups"] = ("float32", partial(_subgroups, threads))
    functions = {
        name: _function(name, dtype, body, threads, groups)
        for name, (dtype, body) in bodies.items()
    }
    compiled = tvm.compile(
        tvm.IRModule(functions), target=tvm_target(target), tir_pipeline=DEVICE_CODE
    )
    return {name: compiled[name] for name in bodies}


def _function(name: str, dtype: str, body: Body, threads: int, groups: int) -> tirx.PrimFunc:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        extent = tirx.const(threads * groups, "int32")
        x, y, out = (T.arg(argument, T.buffer([extent], dtype)) for argument in ("x", "y", "out"))
        with launch([groups], [threads]) as (block, thread):
            body(x, y, out, bind(block * threads + thread), thread)
    return builder.get()


def _floats(x: Buffer, y: Buffer, out: Buffer, i: Expr, _thread: Expr) -> None:
    one = tirx.const(1.0, "float32")
    T.buffer_store(out, (x[i] * y[i] + T.exp(-x[i] * x[i])) * T.rsqrt(one + y[i] * y[i]), [i])


def _sums(threads: int, x: Buffer, y: Buffer, out: Buffer, i: Expr, thread: Expr) -> None:
    total = Reduction(threads, thread)
    total.put([x[i] * y[i]])
    T.buffer_store(out, total.get(), [i])


def _dots(x: Buffer, y: Buffer, out: Buffer, i: Expr, _thread: Expr) -> None:
    T.buffer_store(out, dot4(x[i], y[i], i), [i])


def _halves(x: Buffer, y: Buffer, out: Buffer, i: Expr, _thread: Expr) -> None:
    T.buffer_store(out, x[i] * y[i] + x[i], [i])


def _subgroups(threads: int, x: Buffer, y: Buffer, out: Buffer, i: Expr, thread: Expr) -> None:
    """Emit a sum over the work-group whose parts are those of the subgroups, of any size."""
    parts = shared([threads])
    T.buffer_store(parts, tirx.const(0.0, "float32"), [thread])
    barrier()
    part = bind(T.call_pure_extern("float32", "fabric_subgroup_add", x[i] * y[i]))
    lane, index = (
        T.call_pure_extern("int32", f"fabric_subgroup_{name}") for name in ("lane", "id")
    )
    when(lane == 0, lambda: T.buffer_store(parts, part, [index]))
    barrier()
    total = parts[0]
    for other in range(1, threads):
        total = total + parts[other]
    T.buffer_store(out, total, [i])
