"""What a launch costs: to ask for, to run, to replay from a recording, and to wait for.

Run as ``python bench/launches.py vulkan|opencl [--index 0]``. The kernel adds one to 64 numbers, so
all that is measured is the way there and back, through compiled host code as a model's kernels go.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import tvm
from bitfabric.compiler.spirv import codegen  # noqa: F401
from bitfabric.runtime.backends import devices, load_backend
from bitfabric.runtime.ffi import tvm_ffi
from bitfabric.targets import APIS
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

LANES, ROUNDS = 64, 200
FEW, MANY = 12, 256
"""Launches that no backend hands over by itself, and those of a recording."""


def add_one(target: tvm.target.Target) -> Callable[..., None]:
    """Return the compiled kernel: x += 1."""
    x = tvm.te.placeholder((LANES,), "float32", name="x")
    like = tvm.te.create_prim_func([x, tvm.te.compute((LANES,), lambda i: x[i])])
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": "add_one", "tirx.is_scheduled": True})
        values = T.arg("x", like.params[0])
        with T.launch_thread("blockIdx.x", 1), T.launch_thread("threadIdx.x", LANES) as lane:
            T.buffer_store(values, values[lane] + T.float32(1), [lane])
    module = tvm.IRModule({"add_one": builder.get().with_attr("global_symbol", "add_one")})
    return tvm.compile(module, target=target)["add_one"]


def microseconds(work: Callable[[], Any], count: int, before: Callable[[], Any]) -> float:
    """Return the median time of one of `count` parts of a work."""
    times = []
    for _ in range(ROUNDS):
        before()
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) / count * 1e6)
    return median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(APIS))
    parser.add_argument("--index", type=int, default=0)
    arguments = parser.parse_args()
    load_backend(arguments.kind)
    description = devices(arguments.kind)[arguments.index]
    host = {"kind": "llvm", "mtriple": tvm.target.codegen.llvm_get_system_triple()}
    options = APIS[arguments.kind].from_device(description).options
    kernel = add_one(tvm.target.Target(options, host=host))
    device = tvm_ffi.Device(arguments.kind, arguments.index)
    allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    x = allocate(tvm_ffi.Shape((LANES,)), tvm_ffi.dtype("float32"), device, None)
    zeros, result = np.zeros(LANES, "float32"), np.zeros(LANES, "float32")
    pointer = ctypes.c_void_p(zeros.ctypes.data)
    tvm_ffi.get_global_func("runtime.TVMTensorCopyFromBytes")(x, pointer, zeros.nbytes)
    wait = tvm_ffi.get_global_func("runtime.Device_StreamSync")

    def launch(count: int) -> None:
        for _ in range(count):
            kernel(x)

    def sync() -> None:
        wait(device, 0)

    def launch_and_wait(count: int) -> None:
        launch(count)
        sync()

    launch_and_wait(MANY)
    record = tvm_ffi.get_global_func(f"bitfabric.{arguments.kind}.recorder")(arguments.index)
    replay = record(lambda: launch(MANY), lambda _: None)

    def replay_and_wait() -> None:
        replay(False)
        sync()

    print(f"{description['name']}, {arguments.kind}; microseconds a launch")
    print(f"{'asked for':28}{microseconds(lambda: launch(FEW), FEW, sync):8.2f}")
    print(f"{'run, in a row':28}{microseconds(lambda: launch_and_wait(MANY), MANY, sync):8.2f}")
    print(f"{'replayed from a recording':28}{microseconds(replay_and_wait, MANY, sync):8.2f}")
    print(f"{'alone, and waited for':28}{microseconds(lambda: launch_and_wait(1), 1, sync):8.2f}")
    pointer = ctypes.c_void_p(result.ctypes.data)
    tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")(x, pointer, result.nbytes)
    asked = 2 * MANY + ROUNDS * (2 * MANY + FEW + 1)
    assert (result == asked).all(), "a launch was lost"


if __name__ == "__main__":
    main()
