"""Writes the module whose launches `launches.py` measures, for a target.

Run as ``python bench/launch_module.py vulkan-nvidia launches.so``. The machine that measures needs
the runtime alone, and the device may be elsewhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tvm
from bitfabric.cli.targets import chosen_target
from bitfabric.compiler import device_code
from bitfabric.compiler.link import link
from bitfabric.schedules.gpu.kernel import launch
from launches import KERNEL, LANES
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T


def add_one() -> tvm.tirx.PrimFunc:
    """Return the kernel: x += 1, by one work-group."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        x = T.arg("x", T.buffer([LANES], "float32"))
        with launch([1], [LANES]) as (_, lane):
            T.buffer_store(x, x[lane] + T.float32(1), [lane])
    return builder.get().with_attr("global_symbol", KERNEL)


def main() -> None:
    """Compile and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="vulkan-nvidia, opencl, vulkan:auto, …")
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    target = chosen_target(arguments.target)
    host = {"kind": "llvm", "mtriple": tvm.target.codegen.llvm_get_system_triple()}
    on = tvm.target.Target(dict(target.options), host=host)
    module = tvm.IRModule({KERNEL: add_one()})
    link(tvm.compile(module, target=on, tir_pipeline=device_code.NAME), arguments.path, target)


if __name__ == "__main__":
    main()
