"""The elementwise rules compute what float64 numpy computes, for odd and symbolic sizes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tvm
from bitfabric.models.kernels import (
    accumulate,
    adamw,
    dropout,
    embed,
    gated_activation,
    rms_norm,
    sum_squares,
)
from bitfabric.models.kernels.gated import gated_activation_vjp
from bitfabric.models.kernels.norm import rms_norm_vjp
from bitfabric.schedules import schedule
from bitfabric.targets import Target
from bitfabric.targets.cpu import host_cpu
from tvm import relax, tirx

from .kernel_harness import compiles_for_arm, every_target, prim_func, run

F32, I32 = "float32", "int32"
ROWS = [(3, 37), (130, 768)]


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def _close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    assert np.abs(actual - expected).max() <= tolerance * (1.0 + np.abs(expected).max())


@every_target
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("size", ROWS)
def test_rms_norm(target: Target, size: tuple[int, int], symbolic: bool) -> None:
    rows = tirx.Var("n", "int64") if symbolic else size[0]
    types = [((rows, size[1]), F32), ((size[1],), F32)]
    function = prim_func("rms_norm", partial(_rms, epsilon=1e-5), types)
    x, weight = _normal(0, *size), _normal(1, size[1])
    (y,) = run(function, target, [x, weight], [size])
    x = x.astype("float64")
    _close(y, x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * weight)


def _rms(bb: relax.BlockBuilder, x: relax.Var, weight: relax.Var, epsilon: float) -> relax.Var:
    return rms_norm(bb, x, weight, epsilon)


@every_target
@pytest.mark.parametrize("size", ROWS)
def test_rms_norm_vjp(target: Target, size: tuple[int, int]) -> None:
    types = [(size, F32), (size, F32), ((size[1],), F32)]
    function = prim_func("rms_norm_vjp", lambda bb, *v: rms_norm_vjp(bb, *v, 1e-5), types)
    inputs = [_normal(0, *size), _normal(1, *size), _normal(2, size[1])]
    (dx,) = run(function, target, inputs, [size])
    dy, x, weight = (a.astype("float64") for a in inputs)
    r = 1.0 / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5)
    _close(dx, r * (weight * dy - x * r * r * (weight * dy * x).mean(1, keepdims=True)))


@every_target
@pytest.mark.parametrize("kind", ["silu", "relu2"])
@pytest.mark.parametrize("size", ROWS)
def test_gate_and_its_adjoint(target: Target, kind: str, size: tuple[int, int]) -> None:
    rows, half = size
    gate_up, dy = 4 * _normal(0, rows, 2 * half), _normal(1, *size)
    n = tirx.Var("n", "int64")
    forward = prim_func(
        "gated_activation", lambda bb, g: gated_activation(bb, g, kind), [((n, 2 * half), F32)]
    )
    backward = prim_func(
        "gated_activation_vjp",
        lambda bb, d, g: gated_activation_vjp(bb, d, g, kind),
        [(size, F32), ((rows, 2 * half), F32)],
    )
    (y,) = run(forward, target, [gate_up], [size])
    (adjoint,) = run(backward, target, [dy, gate_up], [(rows, 2 * half)])
    gate, up = gate_up[:, :half].astype("float64"), gate_up[:, half:].astype("float64")
    sigmoid = 1.0 / (1.0 + np.exp(-gate))
    if kind == "silu":
        value, slope = gate * sigmoid, sigmoid * (1.0 + gate * (1.0 - sigmoid))
    else:
        value, slope = np.maximum(gate, 0.0) ** 2, 2.0 * np.maximum(gate, 0.0)
    _close(y, value * up)
    _close(adjoint, np.concatenate([dy * slope * up, dy * value], axis=1))


@every_target
def test_gate_of_extreme_inputs_is_finite(target: Target) -> None:
    function = prim_func(
        "gated_activation", lambda bb, g: gated_activation(bb, g, "silu"), [((1, 32), F32)]
    )
    gate_up = np.ones((1, 32), "float32")
    gate_up[0, :16] = np.repeat([-1e4, -90.0, 90.0, 1e4], 4)
    (y,) = run(function, target, [gate_up], [(1, 16)])
    np.testing.assert_allclose(y[0], np.maximum(gate_up[0, :16], 0.0), atol=1e-3)


@every_target
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_embed(target: Target, dtype: str) -> None:
    vocabulary, width, tokens = 50, 83, np.array([3, 49, 0, 3, 7], "int32")
    n = tirx.Var("n", "int64")
    types = [((n,), I32), ((vocabulary, width), dtype)]
    if dtype == "int8":
        table = np.random.default_rng(0).integers(-128, 128, (vocabulary, width)).astype("int8")
        scale = np.abs(_normal(1, vocabulary))
        inputs = [tokens, table, scale]
        expected = table[tokens].astype("float32") * scale[tokens, None]
        types.append(((vocabulary,), F32))
    else:
        table = _normal(0, vocabulary, width).astype("float16")
        inputs, expected = [tokens, table], table[tokens].astype("float32")
    function = prim_func(
        "embed", lambda bb, t, table, scale=None: embed(bb, t, table, scale), types
    )
    (x,) = run(function, target, inputs, [(len(tokens), width)])
    np.testing.assert_array_equal(x, expected)


@every_target
@pytest.mark.parametrize("size", [(5, 37), (130, 768)])
def test_dropout_draws_the_hash_of_the_place(target: Target, size: tuple[int, int]) -> None:
    function = prim_func(
        "dropout", lambda bb, x, s: dropout(bb, x, s, 3, 0.25), [(size, F32), ((1,), I32)]
    )
    inputs = [_normal(0, *size), np.array([-12345], "int32")]
    (y,) = run(function, target, inputs, [size])
    (plain,) = run(function, target, inputs, [size], plain=True)
    np.testing.assert_array_equal(y, plain)
    key = _hash(np.array([-12345 % 2**32 ^ 3 * 0x9E3779B9 % 2**32], "uint32"))
    kept = _hash(np.arange(y.size, dtype="uint32") ^ key) >= 2**30
    np.testing.assert_allclose(y, inputs[0] * kept.reshape(size) / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 0.1


def _hash(x: np.ndarray) -> np.ndarray:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def pairwise(bb: relax.BlockBuilder, *arguments: relax.Var) -> relax.Var:
    half = len(arguments) // 2
    return accumulate(bb, arguments[:half], arguments[half:])


@every_target
def test_several_tensors_are_accumulated_at_once(target: Target) -> None:
    shapes = [(3, 4, 16), (7, 9), (1000,), (1,)]
    function = prim_func("accumulate", pairwise, [(shape, F32) for shape in shapes] * 2)
    generator = np.random.default_rng(6)
    arrays = [generator.standard_normal(shape).astype(F32) for shape in shapes * 2]
    found = run(function, target, arrays)
    for total, term, after in zip(arrays[:4], arrays[4:], found[:4], strict=True):
        np.testing.assert_array_equal(after, total + term)


@every_target
@pytest.mark.parametrize("shape", [(100,), (8192 * 9 + 5,), (3, 7, 11)])
def test_accumulate_changes_the_first_argument(target: Target, shape: tuple[int, ...]) -> None:
    function = prim_func("accumulate", pairwise, [(shape, F32)] * 2)
    total, term = _normal(0, *shape), _normal(1, *shape)
    after, untouched = run(function, target, [total, term])
    np.testing.assert_array_equal(after, total + term)
    np.testing.assert_array_equal(untouched, term)


@every_target
@pytest.mark.parametrize("size", [1, 100, 8192 * 9 + 21])
def test_sum_squares(target: Target, size: int) -> None:
    function = prim_func("sum_squares", sum_squares, [((size,), F32)])
    gradient = _normal(0, size)
    (total,) = run(function, target, [gradient], [(1,)])
    np.testing.assert_allclose(total[0], (gradient.astype("float64") ** 2).sum(), rtol=3e-6)


@every_target
@pytest.mark.parametrize("size", [37, 8192 * 9 + 21])
def test_adamw_updates_all_four_buffers(target: Target, size: int) -> None:
    def emit(bb: relax.BlockBuilder, *arguments: relax.Var) -> relax.Var:
        return adamw(bb, arguments[:4], arguments[4])

    function = prim_func("adamw", emit, [((size,), F32)] * 4 + [((8,), F32)])
    p, m, v, g = _normal(0, size), _normal(1, size), _normal(2, size) ** 2, _normal(3, size)
    hyper = np.array([1e-2, 0.9, 0.99, 1e-8, 0.1, 0.5, 1 - 0.9**3, 1 - 0.99**3], "float32")
    actual = run(function, target, [p, m, v, g, hyper])
    p, m, v, g, h = (a.astype("float64") for a in (p, m, v, g, hyper))
    m = h[1] * m + (1 - h[1]) * h[5] * g
    v = h[2] * v + (1 - h[2]) * (h[5] * g) ** 2
    p = p - h[0] * h[4] * p - h[0] * (m / h[6]) / (np.sqrt(v / h[7]) + h[3])
    for result, expected in zip(actual, (p, m, v, np.zeros(size)), strict=False):
        _close(result, expected)


def test_sum_squares_does_not_depend_on_the_number_of_threads() -> None:
    size = 8192 * 17 + 3
    function = prim_func("sum_squares", sum_squares, [((size,), F32)])
    gradient, configure = _normal(0, size), tvm.get_global_func("runtime.config_threadpool")
    totals = []
    for threads in (2, 1):
        configure(1, threads)
        totals.append(run(function, host_cpu(), [gradient], [(1,)])[0][0])
    assert totals[0] == totals[1]


def test_elementwise_kernels_compile_for_arm() -> None:
    types = [((4, 32), F32), ((32,), F32)]
    function = prim_func("rms_norm", partial(_rms, epsilon=1e-5), types)
    assert schedule(function, host_cpu())[0].endswith("cpu.norm")
    assert compiles_for_arm(function)
    assert compiles_for_arm(
        prim_func(
            "gated_activation", lambda bb, g: gated_activation(bb, g, "silu"), [((4, 64), F32)]
        )
    )
