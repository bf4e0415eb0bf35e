"""Logits on graphics processors agree with float64 numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tvm
import tvm_ffi
from bitfabric.models.kernels import logits
from bitfabric.schedules import schedule
from bitfabric.schedules.gpu.logits import by_rows
from bitfabric.targets import Target
from bitfabric.targets.opencl import OPENCL
from tvm import relax, tirx

from .kernel_harness import every_gpu, prim_func, run, with_half
from .test_cpu_head import _table, _types

SIZES = [(1, 48, 50), (5, 64, 1999), (6, 784, 333), (1, 768, 131)]


def _function(count: object, columns: int, tensors: list[np.ndarray]) -> tirx.PrimFunc:
    def emit(bb: relax.BlockBuilder, h: relax.Var, table: relax.Var, *s: relax.Var) -> relax.Var:
        return logits(bb, h, table, s[0] if s else None)

    return prim_func("logits", emit, [((count, columns), "float32"), *_types(tensors)])


@pytest.fixture
def pointers_to_half() -> Iterator[None]:
    """Let kernels that only point to float16 run on a device without arithmetic on it."""
    name = "tvm_callback_opencl_postproc"
    before = tvm_ffi.get_global_func(name)

    def without_check(source: str, target: tvm.target.Target) -> str:
        return before(source, target).replace("#error", "//")

    tvm_ffi.register_global_func(name, without_check, override=True)
    yield
    tvm_ffi.register_global_func(name, before, override=True)


@every_gpu
@pytest.mark.parametrize("dtype", ["int8", "float16"])
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("pointers_to_half")
def test_logits(target: Target, dtype: str, symbolic: bool, size: tuple[int, int, int]) -> None:
    target = with_half(target) if dtype == "float16" else target
    tokens, columns, rows = size
    tensors, weight = _table(dtype, rows, columns)
    h = np.random.default_rng(1).standard_normal((tokens, columns)).astype("float32")
    function = _function(tirx.Var("s", "int64") if symbolic else tokens, columns, tensors)
    (out,) = run(function, target, [h, *tensors], [(tokens, rows)])
    np.testing.assert_allclose(out, h.astype("float64") @ weight.T, rtol=1e-5, atol=2e-6)


@every_gpu
@pytest.mark.usefixtures("pointers_to_half")
def test_every_half(target: Target) -> None:
    """A table of every finite float16, subnormal ones too, comes out exactly."""
    bits = np.arange(1 << 16, dtype="uint16").view("float16")
    finite = np.where(np.isfinite(bits), bits, np.float16(0.0))
    table, h = np.zeros((1 << 16, 16), "float16"), np.zeros((1, 16), "float32")
    for column in range(16):
        table[column::16, column] = finite[column::16]
    h[:] = 1.0
    (out,) = run(_function(1, 16, [table]), with_half(target), [h, table], [(1, 1 << 16)])
    np.testing.assert_array_equal(out[0], finite.astype("float32"))


def test_the_rule_is_chosen() -> None:
    tensors, _ = _table("int8", 50, 48)
    assert schedule(_function(1, 48, tensors), OPENCL)[0].endswith("gpu.logits")
    halves, _ = _table("float16", 50, 48)
    assert schedule(_function(1, 48, halves), with_half(OPENCL))[0].endswith("gpu.logits")
    assert by_rows(_function(1, 48, halves), {}, OPENCL) is None
