"""``target.build.vulkan``: what TVM calls for the kernels of a Vulkan target."""

from __future__ import annotations

import tvm
import tvm_ffi

from ..carrier import device_module
from .container import pack_module
from .kernel import generate

KIND = "vulkan"


def build(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
    """Return the device module of lowered kernels.

    Parameters
    ----------
    module : IRModule
        Kernels as TVM splits them from the host's code.
    target : tvm.target.Target
        Of the kind ``vulkan``.

    Raises
    ------
    FabricError
        If a kernel uses what there is no code for, or what the target lacks.
    """
    functions = sorted(module.functions.items(), key=lambda item: item[0].name_hint)
    kernels = [generate(function, target) for _, function in functions]
    return device_module(KIND, pack_module(kernels))


tvm_ffi.register_global_func(f"target.build.{KIND}", build, override=True)
