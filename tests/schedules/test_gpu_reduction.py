"""Sums and maxima of a work-group are those of all its threads, each time, in a fixed order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.models.kernels import rms_norm
from bitfabric.schedules import schedule
from bitfabric.schedules.gpu.kernel import Gpu, launch, loop
from bitfabric.schedules.gpu.reduction import reduction
from bitfabric.schedules.tir import when
from bitfabric.targets import Target
from bitfabric.targets.opencl import ADRENO, NVIDIA, OPENCL
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .kernel_harness import every_gpu, prim_func
from .test_gpu_gemm import _run

GROUPS, ROUNDS = 3, 4


def _combined(
    target: Target, threads: int, count: int, dtype: str, combine: str, x: np.ndarray
) -> np.ndarray:
    """Return what every thread gets of each value in each round: ``(G, count, rounds, threads)``.

    In round r the values are times r + 1, and all threads but the last get them under a branch.
    """

    def body(values: Any, out: Any) -> None:
        with launch([GROUPS], [threads]) as (group, thread):
            ways = {"add": {}, "max": {"combine": tirx.max}}
            group_of = reduction(Gpu(target), threads, thread, count, dtype, **ways[combine])
            with loop(ROUNDS) as i:
                factor = T.Cast(dtype, i + 1)
                group_of.put([values[group, thread, c] * factor for c in range(count)])

                def get() -> None:
                    for c in range(count):
                        found = T.Cast("float32", group_of.get(c))
                        T.buffer_store(out, found, [group, c, i, thread])

                when(thread < threads - 1, get)
                when(thread == threads - 1, get)

    types = [(x.shape, dtype), ((GROUPS, count, ROUNDS, threads), "float32")]
    return _run(target, body, types, [x], types[1][0])[0]


@every_gpu
@pytest.mark.parametrize("combine", ["add", "max"])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize(("threads", "count"), [(32, 1), (64, 4), (256, 2)])
def test_every_thread_gets_what_all_have(
    target: Target, threads: int, count: int, dtype: str, combine: str
) -> None:
    rng = np.random.default_rng(threads + count)
    x = (50 * rng.standard_normal((GROUPS, threads, count))).astype(dtype)
    found = _combined(target, threads, count, dtype, combine, x)
    whole = x.astype("float64").sum(1) if combine == "add" else x.max(1)
    expected = whole[:, :, None] * np.arange(1, ROUNDS + 1)
    bound = 0 if dtype == "int32" else 1e-5 * np.abs(x).sum(1).max() * ROUNDS
    np.testing.assert_allclose(found, np.broadcast_to(expected[..., None], found.shape), atol=bound)
    # All threads have the same bits, and have them again.
    assert (found == found[..., :1]).all()
    np.testing.assert_array_equal(_combined(target, threads, count, dtype, combine, x), found)


def _source(target: Target) -> str:
    """Return a norm's code for a target."""
    types = [((5, 2048), "float32"), ((2048,), "float32")]
    function = prim_func("rms_norm", lambda bb, x, w: rms_norm(bb, x, w, 1e-5), types)
    _, scheduled = schedule(function, target)
    module = tvm.IRModule({"main": scheduled.with_attr("global_symbol", "main")})
    options = tvm.target.Target(target.options, host="llvm")
    built = tvm.compile(module, target=options, tir_pipeline=DEVICE_CODE)
    return str(built.mod.imports[0].inspect_source())


def test_subgroups_take_one_barrier_and_little_shared_memory() -> None:
    kernels = {t.name: _source(t) for t in (OPENCL, ADRENO, NVIDIA)}
    assert kernels["opencl"].count("barrier(") == 2
    assert "sub_group" not in kernels["opencl"]
    for name in ("adreno", "opencl-nvidia"):
        assert kernels[name].count("barrier(") == 1
        assert "cl_khr_subgroups : enable" in kernels[name]
        assert "shfl.sync.bfly" in kernels[name]


def test_a_target_without_the_functions_keeps_its_code() -> None:
    bare = replace(ADRENO, features=ADRENO.features - {"subgroup"})
    wide = replace(OPENCL, limits=ADRENO.limits, options=ADRENO.options)
    assert _source(bare) == _source(wide)
