"""``target.build.cuda``: TVM's own generator of CUDA C++, and machine code of what it writes.

Where TVM has no CUDA runtime loaded, as on any machine without a driver, it would let a module
carry the source alone, which no device could run without a compiler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tvm
import tvm_ffi
from tvm.s_tir import transform as s_tir

from ..carrier import device_module
from .compile import compile_source
from .container import pack_module

KIND = "cuda"
CREATE = f"ffi.Module.create.{KIND}"
"""What TVM's generator calls with the source it wrote."""
_generate = tvm_ffi.get_global_func(f"target.build.{KIND}")


def build(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Module:
    """Return the device module of lowered kernels, with code for each architecture of the target.

    Parameters
    ----------
    module : IRModule
        Kernels as TVM splits them from the host's code.
    target : tvm.target.Target
        Of the kind ``cuda``; the architectures are among its keys.

    Raises
    ------
    CudaCompilerError
        If the compilers are not installed, or refuse a kernel.
    """
    architectures = [str(key) for key in target.keys if str(key).startswith("sm_")]
    with _compiled_for(architectures):
        return _generate(s_tir.InferFragment()(module), target)


@contextmanager
def _compiled_for(architectures: Sequence[str]) -> Iterator[None]:
    """Let TVM make modules of compiled code meanwhile.

    Its own runtime for CUDA may be loaded later, and wants to find the name free.
    """

    def create(code: bytes, _form: str, functions: Any, _sources: Any) -> tvm.runtime.Module:
        fat = compile_source(bytes(code).decode(), architectures)
        return device_module(KIND, pack_module("fatbin", functions, fat))

    before = tvm_ffi.get_global_func(CREATE, allow_missing=True)
    tvm_ffi.register_global_func(CREATE, create, override=True)
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.remove_global_func(CREATE)
        else:
            tvm_ffi.register_global_func(CREATE, before, override=True)


tvm_ffi.register_global_func(f"target.build.{KIND}", build, override=True)
