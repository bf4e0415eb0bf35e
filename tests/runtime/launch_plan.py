"""What a device must be given to do, from the processor's own run of the same kernels.

The lowered module of a device's bundle is compiled once more, for the processor: the functions that
launch kernels stay what they are, but each launch becomes a call of `launch_recorder.py`. `fabric
run` then trains and writes with that bundle as with any other of the processor's, and what was
written down is what the run on a device is compared with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tvm
import tvm_ffi
from bitfabric.compiler import CompileOptions, compile_model, pipeline
from bitfabric.compiler import compile as compiling
from bitfabric.compiler.device_code import flattened, loops
from bitfabric.compiler.windows import split
from bitfabric.models import Checkpoint, ModelConfig
from bitfabric.targets import Target, get_target
from bitfabric.targets.windows import item_bytes
from tvm import tirx
from tvm.s_tir.pipeline import finalize_device_passes, finalize_host_passes
from tvm.tirx import transform
from tvm.tirx.compilation_pipeline import register_tir_pipeline

from .launch_recorder import ENTERED, LAUNCHED

HOST = "bitfabric.test.launches"
"""The pipeline that takes functions whose launches are calls."""


def compile_plan(model: Checkpoint, target: Target, options: CompileOptions, output: Path) -> Path:
    """Compile a model to a bundle of the processor's whose kernels are a device's.

    Parameters
    ----------
    model, options, output
        As of `compile_model`.
    target : Target
        The device's.
    """

    def build(
        config: ModelConfig, host: Target, options: CompileOptions, *_: Any
    ) -> tuple[Any, dict[str, str], tvm.IRModule]:
        module = pipeline.fuse(pipeline.build_graph(config, options, target))
        module, kernels = pipeline.apply_schedules(module, target)
        lowered = pipeline.lower(split(module, target))
        made = tvm.compile(
            _with_calls(lowered, target, host),
            target=pipeline.tvm_target(host),
            relax_pipeline=tvm.transform.Sequential([]),
            tir_pipeline=HOST,
        )
        return made, kernels, lowered

    with pytest.MonkeyPatch.context() as patch:
        # Not another's module of the same options, and not ours for others.
        patch.setenv("BITFABRIC_CACHE", str(output.parent / "plan-cache"))
        patch.setattr(compiling, "build", build)
        return compile_model(model, get_target("cpu"), options, output)


def _with_calls(lowered: tvm.IRModule, target: Target, host: Target) -> tvm.IRModule:
    """Return a lowered module in which each launch is a call of this file."""
    kernels = {
        name: function
        for name, function in lowered.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    bound = transform.BindTarget(pipeline.tvm_target(target))(tvm.IRModule(kernels))
    passes = [*loops(), transform.AnnotateEntryFunc(), transform.SplitHostDevice()]
    apart = tvm.transform.Sequential(passes)(flattened(bound))
    functions = dict(lowered.functions.items())
    for name in kernels:
        function = apart[name.name_hint].with_attr("target", pipeline.tvm_target(host))
        functions[name] = function.with_body(_calls(name.name_hint, function.body))
    return tvm.IRModule(functions, attrs=lowered.attrs)


def _calls(name: str, body: Any) -> Any:
    """Return a function's body with calls in the place of launches."""
    own: set[Any] = set()

    def allocated(node: tirx.AllocBuffer) -> None:
        own.add(node.buffer)

    def declared(node: tirx.DeclBuffer) -> None:
        if getattr(node.data, "args", None) and node.data.args[0] in own:
            own.add(node.buffer)

    tvm_ffi.structural_walk(body, (tirx.AllocBuffer, allocated))
    tvm_ffi.structural_walk(body, (tirx.DeclBuffer, declared))

    def call(node: Any, mutator: Any) -> Any:
        if getattr(node.op, "name", "") != "tirx.call_ffi_kernel":
            return mutator.default_mutate(node)
        kernel, *values = node.args
        tags = [str(tag) for tag in node.attrs["launch_params"]]
        arguments, extents = values[: -len(tags)], values[-len(tags) :]
        form, given = "", []
        for value in arguments:
            buffer = getattr(value, "args", [None])[0]
            if getattr(getattr(value, "op", None), "name", "") != "tirx.buffer_data":
                form += "s"
                given.append(value)
                continue
            form += "o" if buffer in own else "b"
            size: Any = tirx.const(item_bytes(str(buffer.dtype)), "int64")
            for extent in buffer.shape:
                size = size * tirx.Cast("int64", extent)
            given += [value, size]
        return tirx.call_packed(LAUNCHED, kernel.value, form, ",".join(tags), *given, *extents)

    body = tvm_ffi.structural_mutate(body, [(tvm.ir.Call, call)])
    return tirx.SeqStmt([tirx.Evaluate(tirx.call_packed(ENTERED, name)), body])


def _pipeline() -> tuple[Any, Any, Any]:
    passes = tvm.transform.Sequential([transform.MakePackedAPI()])
    return passes, finalize_host_passes, finalize_device_passes


register_tir_pipeline(HOST, _pipeline)
