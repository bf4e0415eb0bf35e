"""A function of two kernels, compiled for a device and called until it would have leaked."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from bitfabric.targets.ffi import tvm_ffi
from tvm import relax
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T


def resident_bytes() -> int:
    """Return this process's memory; 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def row_sums() -> tvm.IRModule:
    """A function of two kernels with a workspace between: y = x · (sum of x's row)."""
    n = tvm.te.var("n", "int64")
    x = tvm.te.placeholder((n, 256), "float32")
    like = tvm.te.create_prim_func([x, tvm.te.compute((n, 256), lambda i, j: x[i, j])])
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        source, target = [T.arg(p.name, p) for p in like.params]
        rows = source.shape[0]
        sums = T.alloc_buffer((rows,), "float32")
        launch = T.launch_thread
        with launch("blockIdx.x", rows) as row, launch("threadIdx.x", 1):
            T.buffer_store(sums, T.float32(0), [row])
            with T.serial(0, 256) as k:
                T.buffer_store(sums, sums[row] + source[row, k], [row])
        with launch("blockIdx.x", rows) as row, launch("threadIdx.x", 256) as k:
            T.buffer_store(target, source[row, k] * sums[row], [row, k])
    builder_module = relax.BlockBuilder()
    argument = relax.Var("x", relax.TensorType((n, 256), "float32"))
    with builder_module.function("main", [argument]):
        kernel = builder_module.add_func(builder.get(), "row_sums")
        with builder_module.dataflow():
            kind = relax.TensorType((n, 256), "float32")
            result = builder_module.emit_output(relax.call_tir(kernel, [argument], kind))
        builder_module.emit_func_output(result)
    return builder_module.get()


def compiled(target: dict[str, Any]) -> relax.VMExecutable:
    """Return the function compiled for a device, with this machine as its host."""
    host = {"kind": "llvm", "mtriple": tvm.target.codegen.llvm_get_system_triple()}
    return tvm.compile(row_sums(), target=tvm.target.Target(target, host=host))


def check(
    library: Path,
    device: int,
    upload: Callable[[np.ndarray], Any],
    download: Callable[[Any], np.ndarray],
    memory: Callable[[], dict[str, int]],
) -> None:
    """Call the function of a library on a device of a DLPack type: it is right and leaks nothing.

    Parameters
    ----------
    upload, download, memory : callable
        Copies an array to the device, and back, waiting; counts the device's memory.
    """
    executable = tvm_ffi.load_module(str(library))["vm_load_executable"]()
    executable["vm_initialization"](device, 0, 2, 1, 0, 2)
    main = executable["main"]
    for rows in (5, 1, 17):
        x = np.random.default_rng(rows).standard_normal((rows, 256)).astype("float32")
        expected = x.astype("float64") * x.astype("float64").sum(1, keepdims=True)
        np.testing.assert_allclose(download(main(upload(x))), expected, rtol=1e-4, atol=1e-4)
    x = upload(x)

    def steps(count: int) -> tuple[int, dict[str, int]]:
        for _ in range(count):
            result = main(x)
        download(result)
        return resident_bytes(), memory()

    steps(2000)
    # What is once set aside is no leak: that would grow in every round.
    rounds = [steps(5000) for _ in range(4)]
    resident = [bytes_held for bytes_held, _ in rounds]
    growth = [later - earlier for earlier, later in itertools.pairwise(resident)]
    assert all(counters == rounds[0][1] for _, counters in rounds)
    assert min(growth) < 1 << 20
