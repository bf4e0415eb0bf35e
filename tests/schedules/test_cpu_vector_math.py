"""The elementary functions of vectors are as exact as they say, and rows are cut without a gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.schedules.cpu.isa import Isa
from bitfabric.schedules.cpu.microkernel import EvenCut, row_tiles
from bitfabric.schedules.cpu.vector_math import exp, half_to_float, rounded, sigmoid
from bitfabric.schedules.tir import build, load, loop, shape, store
from bitfabric.targets import Target
from bitfabric.targets.cpu import X86_64
from tvm import te, tirx

from .kernel_harness import every_target


def _run(target: Target, body: Callable[..., None], x: np.ndarray, dtype: str) -> np.ndarray:
    """Run a body over ``x (n,)`` and ``y (n,)``, written straight for the target."""
    given = te.placeholder(x.shape, str(x.dtype))
    result = te.compute(x.shape, lambda i: tirx.Cast(dtype, given[i]))
    function = build(te.create_prim_func([given, result]), body)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    tensors = [tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros(x.shape, dtype))]
    tvm.compile(module, target=tvm.target.Target(target.options))["main"](*tensors)
    return tensors[1].numpy()


def _mapped(
    target: Target, function: Callable[[Any], Any], x: np.ndarray, dtype: str = "float32"
) -> np.ndarray:
    lanes = Isa(target).lanes

    def body(given: Any, result: Any) -> None:
        with loop(len(x) // lanes) as i:
            store(result, function(load(given, i * lanes, lanes=lanes)), i * lanes)

    return _run(target, body, x, dtype)


@every_target
def test_exp(target: Target) -> None:
    x = np.linspace(-87.0, 88.0, 1 << 16, dtype="float32")
    np.testing.assert_allclose(_mapped(target, exp, x), np.exp(x.astype("float64")), rtol=1.2e-7)
    far = np.repeat(np.array([-1e30, -200.0, 0.0, 1e30], "float32"), 16)
    found = _mapped(target, exp, far).reshape(4, 16)[:, 0]
    assert found[0] == found[1] < 1.3e-38
    assert found[2] == 1.0
    assert np.isfinite(found[3])


@every_target
def test_sigmoid(target: Target) -> None:
    x = np.linspace(-80.0, 80.0, 1 << 12, dtype="float32")
    expected = 1.0 / (1.0 + np.exp(-x.astype("float64")))
    np.testing.assert_allclose(_mapped(target, sigmoid, x), expected, rtol=4e-7)


@every_target
def test_rounded_half_to_even(target: Target) -> None:
    x = np.concatenate([np.arange(-64, 64) + 0.5, np.linspace(-128, 128, 384)]).astype("float32")
    np.testing.assert_array_equal(_mapped(target, rounded, x, "int32"), np.rint(x))


@every_target
@pytest.mark.parametrize("native", [False, True])
def test_every_half(target: Target, native: bool) -> None:
    if native and not Isa(target).native_half:
        pytest.skip("the processor has no conversion")
    half = np.arange(1 << 16, dtype="uint16").view("float16")
    half = np.where(np.isfinite(half), half, np.float16(0))
    found = _mapped(target, lambda value: half_to_float(value, native), half)
    np.testing.assert_array_equal(found.view("uint32"), half.astype("float32").view("uint32"))


@pytest.mark.parametrize("rows", [0, 1, 5, 6, 7, 128, 131])
@pytest.mark.parametrize("symbolic", [False, True])
def test_row_tiles_cover_each_row_once(rows: int, symbolic: bool) -> None:
    """Without overlap, adding one to each row of each tile leaves exactly one everywhere."""

    def body(given: Any, result: Any) -> None:
        extent = tirx.Cast("int64", given[0]) if symbolic else rows

        def tile(first: Any, height: int) -> None:
            for i in range(height):
                store(result, result[first + i] + 1, first + i)

        row_tiles(extent, 6, tile)

    found = _run(X86_64, body, np.full(140, rows, "int32"), "int32")
    np.testing.assert_array_equal(found, np.arange(140) < rows)


def test_even_cut_uses_neighbouring_heights() -> None:
    assert EvenCut.of(128, 6) == EvenCut(tiles=22, low=5, higher=18)
    assert EvenCut.of(12, 6) == EvenCut(tiles=2, low=6, higher=0)


def test_shape_is_static_where_it_can_be() -> None:
    n = tirx.Var("n", "int64")
    x = te.placeholder((n, 8), "float32")
    function = te.create_prim_func([x, te.compute(x.shape, lambda i, j: x[i, j])])
    extents = shape(function.params[0])
    assert extents[1] == 8
    assert isinstance(extents[0], tirx.Var)
