"""What TVM's own schedules for graphics processors use: shuffles, shared reductions, vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op
from tvm.s_tir import dlight

from .programs import target
from .runner import needs_device

LIMITS = {"max_threads_per_block": 256, "max_shared_memory_per_block": 32 << 10}
TARGETS = {
    "shuffles": target("int64", thread_warp_size=8, **LIMITS),
    "shared": target("int64", addresses=False, thread_warp_size=1, **LIMITS),
}


def softmax(x: np.ndarray) -> np.ndarray:
    """Return the softmax of each row."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


PROGRAMS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]], Callable[..., Any]]] = {
    "matmul": (op.matmul, [(64, 96), (96, 64)], np.matmul),
    "gemv": (op.matmul, [(1, 256), (256, 96)], np.matmul),
    "softmax": (op.nn.softmax, [(8, 300)], softmax),
    "sum": (lambda x: op.sum(x, axis=1), [(8, 300)], lambda x: x.sum(1)),
    "transpose": (op.permute_dims, [(16, 40)], np.transpose),
}


@needs_device
@pytest.mark.parametrize("on", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str, on: tvm.target.Target) -> None:
    emit, shapes, expect = PROGRAMS[name]
    builder = relax.BlockBuilder()
    variables = [
        relax.Var(f"v{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)
    ]
    with builder.function("main", variables):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(emit(*variables)))
        builder.emit_func_output(out)
    rules = (dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Reduction())
    others = (dlight.gpu.GeneralReduction(), dlight.gpu.Transpose(), dlight.gpu.Fallback())
    with on:
        module = relax.transform.LegalizeOps()(builder.get())
        module = dlight.ApplyDefaultSchedule(*rules, *others)(module)
    device = tvm.runtime.device("vulkan", 0)
    machine = relax.VirtualMachine(tvm.compile(module, target=on), device)
    random = np.random.default_rng(0)
    inputs = [random.standard_normal(shape).astype("float32") for shape in shapes]
    found = machine["main"](*[tvm.runtime.tensor(array, device) for array in inputs])
    np.testing.assert_allclose(found.numpy(), expect(*inputs), rtol=1e-4, atol=1e-4)
