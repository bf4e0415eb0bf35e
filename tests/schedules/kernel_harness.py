"""Build one kernel of `models/kernels`, lay it out for a target, and run it on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.runtime.backends import devices, load_backend
from bitfabric.schedules import schedule
from bitfabric.targets import APIS, Target, get_target
from bitfabric.targets.cpu import AVX2, AVX512_VNNI, NEON_DOT, X86_64, cpu_flags
from tvm import relax, tirx

from ..devices import missing, needs

Size = Any
"""An extent: an int, or a variable."""
LIMITS = ("max_threads_per_block", "max_num_threads", "max_shared_memory_per_block")
"""What a TVM target says of a work-group."""


def can_run(target: Target) -> bool:
    """Tell whether this machine runs a target's code."""
    flags = cpu_flags()
    needed = {AVX512_VNNI.name: {"avx512_vnni"}, AVX2.name: {"avx2", "fma"}, X86_64.name: {"sse2"}}
    return needed.get(target.name, {"never"}) <= flags


every_target = pytest.mark.parametrize(
    "target",
    [
        pytest.param(t, marks=pytest.mark.skipif(not can_run(t), reason="needs the processor"))
        for t in (AVX512_VNNI, AVX2, X86_64)
    ],
    ids=lambda target: target.name,
)


def device_target(kind: str) -> Target:
    """Return the target of the device here that uses all it has; the generic one without any."""
    generic = get_target(kind)
    if missing(kind):
        return generic
    own = APIS[kind].from_device(devices(kind)[0])
    return replace(generic, features=generic.features | own.features) if kind == "opencl" else own


def through(kind: str, layout: Target) -> Target:
    """Return a target that lays kernels out as `layout` does, for the device of an API."""
    target = device_target(kind)
    own = {name: layout.options[name] for name in LIMITS}
    # A processor that poses as a device gains nothing from shared memory, but it has it, and any
    # compiler of OpenCL C makes a dot product of other instructions.
    always = {"shared_memory"} | ({"int8_dot"} if kind == "opencl" else set())
    features = layout.features & (target.features | always)
    options = target.options | own
    units = target.matrices
    return replace(layout, options=options, device=kind, features=features, matrices=units)


def _every(target: Callable[[str], Target], *names: str) -> list[Any]:
    return [
        pytest.param(target(kind), marks=needs(kind), id="-".join((kind, *names))) for kind in APIS
    ]


def layouts(*targets: Target) -> pytest.MarkDecorator:
    """Return a mark that lays kernels out as each of these targets, for every API's device."""
    every = (_every(lambda kind, t=t: through(kind, t), t.name) for t in targets)
    return pytest.mark.parametrize("target", [each for several in every for each in several])


def with_half(target: Target) -> Target:
    """Return a target whose kernels may use 16-bit floats."""
    return replace(target, features=target.features | {"fp16"})


def tolerance(target: Target, exact: float) -> float:
    """Return how far off gradients may be: as far as float32, or as halves are."""
    return 1e-3 if "fp16" in target.features else exact


every_gpu = pytest.mark.parametrize("target", _every(device_target))


def prim_func(
    kernel: str,
    emit: Callable[..., relax.Expr],
    types: Sequence[tuple[Sequence[Size], str]],
) -> tirx.PrimFunc:
    """Return the PrimFunc of the kernel that ``emit(bb, *variables)`` emits for these types."""
    bb = relax.BlockBuilder()
    variables = [
        relax.Var(f"v{i}", relax.TensorType(list(shape), dtype))
        for i, (shape, dtype) in enumerate(types)
    ]
    with bb.function("main", variables):
        with bb.dataflow():
            out = bb.emit_output(emit(bb, *variables))
        bb.emit_func_output(out)
    (function,) = (
        f
        for f in bb.get().functions.values()
        if isinstance(f, tirx.PrimFunc) and str(f.attrs["fabric.kernel"]) == kernel
    )
    return function


@lru_cache(maxsize=64)
def compiled(function: tirx.PrimFunc, target: Target, plain: bool = False) -> Callable[..., None]:
    """Return a kernel compiled by the target's rule, or `plain` as it is, over runtime tensors."""
    if not plain:
        _, function = schedule(function, target)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    if target.family == "cpu":
        return tvm.compile(module, target=tvm.target.Target(target.options))["main"]
    load_backend(target.device)
    options = tvm.target.Target(target.options, host="llvm")
    return tvm.compile(module, target=options, tir_pipeline=DEVICE_CODE)["main"]


def run(
    function: tirx.PrimFunc,
    target: Target,
    inputs: Sequence[np.ndarray],
    outputs: Sequence[tuple[int, ...]] = (),
    plain: bool = False,
) -> list[np.ndarray]:
    """Run a kernel; returns its outputs, which start as NaN, or without any the inputs after."""
    kernel = compiled(function, target, plain)
    device = tvm.runtime.device(target.device, 0)
    tensors = [tvm.runtime.tensor(array.copy(), device) for array in inputs]
    results = [tvm.runtime.tensor(np.full(shape, np.nan, "float32"), device) for shape in outputs]
    kernel(*tensors, *results)
    return [tensor.numpy() for tensor in (results or tensors)]


def compiles_for_arm(function: tirx.PrimFunc) -> bool:
    """Tell whether the kernel of a rule becomes AArch64 code."""
    _, scheduled = schedule(function, NEON_DOT)
    module = tvm.IRModule({"main": scheduled.with_attr("global_symbol", "main")})
    executable = tvm.compile(module, target=tvm.target.Target(NEON_DOT.options))
    return "fmul" in executable.mod.inspect_source("asm")
