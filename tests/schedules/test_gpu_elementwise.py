"""The graphics processors' elementwise rules compute what float64 numpy does, for odd sizes too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
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
from bitfabric.models.kernels.gated import gated_activation_vjp, gated_norm_vjp
from bitfabric.models.kernels.norm import Norm, rms_norm_vjp
from bitfabric.schedules import schedule
from bitfabric.targets import FabricError, Target
from bitfabric.targets.opencl import OPENCL
from tvm import relax, tirx

from .kernel_harness import every_gpu, prim_func, run, with_half
from .test_gpu_logits import pointers_to_half  # noqa: F401

F32, I32 = "float32", "int32"
ROWS = [(3, 37), (5, 768)]
Emit = Callable[..., relax.Expr]


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def _close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    assert np.abs(actual - expected).max() <= tolerance * (1.0 + np.abs(expected).max())


@every_gpu
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("size", [*ROWS, (1, 2052)])
def test_rms_norm(target: Target, size: tuple[int, int], symbolic: bool) -> None:
    rows = tirx.Var("n", "int64") if symbolic else size[0]
    types = [((rows, size[1]), F32), ((size[1],), F32)]
    function = prim_func("rms_norm", lambda bb, x, w: rms_norm(bb, x, w, 1e-5), types)
    x, weight = _normal(0, *size), _normal(1, size[1])
    (y,) = run(function, target, [x, weight], [size])
    x = x.astype("float64")
    _close(y, x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * weight)


@every_gpu
@pytest.mark.parametrize("size", ROWS)
def test_rms_norm_vjp(target: Target, size: tuple[int, int]) -> None:
    types = [(size, F32), (size, F32), ((size[1],), F32)]
    function = prim_func("rms_norm_vjp", lambda bb, *v: rms_norm_vjp(bb, *v, 1e-5), types)
    inputs = [_normal(0, *size), _normal(1, *size), _normal(2, size[1])]
    (dx,) = run(function, target, inputs, [size])
    dy, x, weight = (a.astype("float64") for a in inputs)
    r = 1.0 / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5)
    expected = r * (weight * dy - x * r * r * (weight * dy * x).mean(1, keepdims=True))
    _close(dx, expected)

    def emit_with_more(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return rms_norm_vjp(bb, *v[:3], 1e-5, v[3])

    with_more = prim_func("rms_norm_vjp", emit_with_more, [*types, (size, F32)])
    more = _normal(3, *size)
    (dx,) = run(with_more, target, [*inputs, more], [size])
    _close(dx, expected + more)


@every_gpu
@pytest.mark.parametrize("kind", ["silu", "relu2"])
@pytest.mark.parametrize("size", ROWS)
def test_gate_and_norm_have_one_adjoint(target: Target, kind: str, size: tuple[int, int]) -> None:
    rows, half = size
    inputs = [_normal(1, *size), 2 * _normal(0, rows, 2 * half), _normal(2, half)]
    function = prim_func(
        "gated_norm_vjp",
        lambda bb, d, g, w: gated_norm_vjp(bb, d, g, Norm(w, 1e-5), kind),
        [(array.shape, F32) for array in inputs],
    )
    (adjoint,) = run(function, target, inputs, [(rows, 2 * half)])
    dy, gate_up, weight = (torch.tensor(array, dtype=torch.float64) for array in inputs)
    gate_up.requires_grad_(True)
    gate, up = gate_up.chunk(2, dim=1)
    h = (torch.nn.functional.silu(gate) if kind == "silu" else torch.relu(gate) ** 2) * up
    torch.nn.functional.rms_norm(h, (half,), weight, 1e-5).backward(dy)
    _close(adjoint, gate_up.grad.numpy())


@every_gpu
@pytest.mark.parametrize("kind", ["silu", "relu2"])
@pytest.mark.parametrize("size", ROWS)
def test_gate_and_its_adjoint(target: Target, kind: str, size: tuple[int, int]) -> None:
    rows, half = size
    gate_up, dy = 4 * _normal(0, rows, 2 * half), _normal(1, *size)
    gate_up[0, :4] = [-1e4, -90.0, 90.0, 1e2]
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
    sigmoid = 1.0 / (1.0 + np.exp(-np.maximum(gate, -700)))
    if kind == "silu":
        value, slope = gate * sigmoid, sigmoid * (1.0 + gate * (1.0 - sigmoid))
    else:
        value, slope = np.maximum(gate, 0.0) ** 2, 2.0 * np.maximum(gate, 0.0)
    np.testing.assert_allclose(y, value * up, rtol=3e-6, atol=1e-6)
    expected = np.concatenate([dy * slope * up, dy * value], axis=1)
    np.testing.assert_allclose(adjoint, expected, rtol=3e-6, atol=1e-5)


@every_gpu
@pytest.mark.parametrize("width", [83, 64])
def test_embed_of_bytes(target: Target, width: int) -> None:
    vocabulary, tokens = 50, np.array([3, 49, 0, 3, 7], I32)
    table = np.random.default_rng(0).integers(-128, 128, (vocabulary, width)).astype("int8")
    scale = np.abs(_normal(1, vocabulary))
    n = tirx.Var("n", "int64")
    types = [((n,), I32), ((vocabulary, width), "int8"), ((vocabulary,), F32)]
    function = prim_func("embed", embed, types)
    (x,) = run(function, target, [tokens, table, scale], [(len(tokens), width)])
    np.testing.assert_array_equal(x, table[tokens].astype(F32) * scale[tokens, None])


def _embed_halves(bb: relax.BlockBuilder, tokens: relax.Var, table: relax.Var) -> relax.Var:
    return embed(bb, tokens, table, None)


@every_gpu
@pytest.mark.usefixtures("pointers_to_half")
def test_embed_of_halves(target: Target) -> None:
    table = np.random.default_rng(0).integers(0, 1 << 16, (64, 64)).astype("uint16").view("float16")
    table = np.where(np.isfinite(table), table, np.float16(0)).astype("float16")
    tokens = np.array([3, 49, 0, 3, 63], I32)
    function = prim_func("embed", _embed_halves, [((5,), I32), ((64, 64), "float16")])
    (x,) = run(function, with_half(target), [tokens, table], [(5, 64)])
    np.testing.assert_array_equal(x, table[tokens].astype(F32))


def test_a_half_precision_table_needs_half_precision() -> None:
    function = prim_func("embed", _embed_halves, [((3,), I32), ((50, 64), "float16")])
    with pytest.raises(FabricError, match="'embed' onto the target opencl"):
        schedule(function, OPENCL)


@every_gpu
@pytest.mark.parametrize("size", [(5, 37), (9, 768)])
def test_dropout_draws_the_hash_of_the_place(target: Target, size: tuple[int, int]) -> None:
    function = prim_func(
        "dropout", lambda bb, x, s: dropout(bb, x, s, 3, 0.25), [(size, F32), ((1,), I32)]
    )
    x = _normal(0, *size)
    (y,) = run(function, target, [x, np.array([-12345], I32)], [size])
    key = _hash(np.array([-12345 % 2**32 ^ 3 * 0x9E3779B9 % 2**32], "uint32"))
    kept = _hash(np.arange(y.size, dtype="uint32") ^ key) >= 2**30
    np.testing.assert_array_equal(y != 0, kept.reshape(size))
    np.testing.assert_allclose(y, x * kept.reshape(size) / 0.75, rtol=1e-6)


def _hash(x: np.ndarray) -> np.ndarray:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def pairwise(bb: relax.BlockBuilder, *arguments: relax.Var) -> relax.Var:
    half = len(arguments) // 2
    return accumulate(bb, arguments[:half], arguments[half:])


@every_gpu
def test_several_tensors_are_accumulated_at_once(target: Target) -> None:
    shapes = [(3, 4, 16), (7, 9), (1000,), (1,)]
    function = prim_func("accumulate", pairwise, [(shape, F32) for shape in shapes] * 2)
    generator = np.random.default_rng(6)
    arrays = [generator.standard_normal(shape).astype(F32) for shape in shapes * 2]
    found = run(function, target, arrays)
    for total, term, after in zip(arrays[:4], arrays[4:], found[:4], strict=True):
        np.testing.assert_array_equal(after, total + term)


@every_gpu
@pytest.mark.parametrize("shape", [(3,), (4099,), (3, 7, 11), (2, 8, 64)])
def test_accumulate_changes_the_first_argument(target: Target, shape: tuple[int, ...]) -> None:
    function = prim_func("accumulate", pairwise, [(shape, F32)] * 2)
    total, term = _normal(0, *shape), _normal(1, *shape)
    after, untouched = run(function, target, [total, term])
    np.testing.assert_array_equal(after, total + term)
    np.testing.assert_array_equal(untouched, term)


@every_gpu
@pytest.mark.parametrize("size", [1, 100, 4096, 4097, 4096 * 3 + 7, 4096 * 260])
def test_sum_squares(target: Target, size: int) -> None:
    function = prim_func("sum_squares", sum_squares, [((size,), F32)])
    gradient = _normal(0, size)
    totals = [run(function, target, [gradient], [(1,)])[0][0] for _ in range(2)]
    np.testing.assert_allclose(totals[0], (gradient.astype("float64") ** 2).sum(), rtol=3e-6)
    assert totals[0] == totals[1]


@every_gpu
@pytest.mark.parametrize("size", [3, 37, 4096])
def test_adamw_updates_all_four_buffers(target: Target, size: int) -> None:
    def emit(bb: relax.BlockBuilder, *arguments: relax.Var) -> relax.Var:
        return adamw(bb, arguments[:4], arguments[4])

    function = prim_func("adamw", emit, [((size,), F32)] * 4 + [((8,), F32)])
    p, m, v, g = _normal(0, size), _normal(1, size), _normal(2, size) ** 2, _normal(3, size)
    hyper = np.array([1e-2, 0.9, 0.99, 1e-8, 0.1, 0.5, 1 - 0.9**3, 1 - 0.99**3], F32)
    actual = run(function, target, [p, m, v, g, hyper])
    p, m, v, g, h = (a.astype("float64") for a in (p, m, v, g, hyper))
    m = h[1] * m + (1 - h[1]) * h[5] * g
    v = h[2] * v + (1 - h[2]) * (h[5] * g) ** 2
    p = p - h[0] * h[4] * p - h[0] * (m / h[6]) / (np.sqrt(v / h[7]) + h[3])
    for result, expected in zip(actual, (p, m, v, np.zeros(size)), strict=False):
        _close(result, expected)


def _fused(emit: Emit, types: list[tuple[list, str]]) -> tvm.IRModule:
    """Return a program after the passes that make kernels of operators and fuse them."""
    bb = relax.BlockBuilder()
    v = [relax.Var(f"v{i}", relax.TensorType(s, t)) for i, (s, t) in enumerate(types)]
    with bb.function("main", v):
        with bb.dataflow():
            out = bb.emit_output(emit(bb, *v))
        bb.emit_func_output(out)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
    ]
    return tvm.ir.transform.Sequential(passes)(bb.get())


def _fused_kernel(emit: Emit, types: list[tuple[list, str]]) -> tirx.PrimFunc:
    """Return the one kernel that a program is fused to."""
    module = _fused(emit, types)
    (kernel,) = (f for f in module.functions.values() if isinstance(f, tirx.PrimFunc))
    return kernel


def _adds_and_joins(bb: relax.BlockBuilder, x: relax.Var, y: relax.Var) -> relax.Expr:
    total = bb.emit(relax.op.add(relax.op.multiply(x, y), y))
    return relax.op.concat([relax.op.exp(total), x], axis=1)


CASES: dict[str, tuple[Emit, list[list[int]], Callable[..., np.ndarray]]] = {
    "adds": (lambda bb, x, y: relax.op.add(x, y), [[5, 64]] * 2, np.add),
    "odd": (lambda bb, x, y: relax.op.add(x, y), [[5, 33]] * 2, np.add),
    "adds many": (lambda bb, x, y: relax.op.add(x, y), [[300, 260]] * 2, np.add),
    "sums of many": (
        lambda bb, x, y: relax.op.add(bb.emit(relax.op.multiply(x, y)), y),
        [[3, 100, 260]] * 2,
        lambda x, y: x * y + y,
    ),
    "many and a row": (lambda bb, x, y: relax.op.add(x, y), [[300, 260], [260]], np.add),
    "scalar": (lambda bb, x, y: relax.op.add(x, y), [[]] * 2, np.add),
    "joins": (
        _adds_and_joins,
        [[6, 20]] * 2,
        lambda x, y: np.concatenate([np.exp(x * y + y), x], axis=1),
    ),
    "turns": (
        lambda bb, x: relax.op.permute_dims(relax.op.reshape(x, (48, 40, 4)), [1, 0, 2]),
        [[30, 256]],
        lambda x: x.reshape(48, 40, 4).transpose(1, 0, 2),
    ),
    "sums a row": (lambda bb, x: relax.op.sum(x, axis=1), [[7, 40]], partial(np.sum, axis=1)),
    "sums all": (lambda bb, x: relax.op.sum(x), [[7, 40]], np.sum),
    "softmax": (
        lambda bb, x: relax.op.nn.softmax(x),
        [[7, 40]],
        lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True),
    ),
}


@every_gpu
@pytest.mark.parametrize("case", CASES)
def test_other_kernels_keep_their_meaning(target: Target, case: str) -> None:
    emit, shapes, reference = CASES[case]
    arrays = [
        np.asarray(np.random.default_rng(i).standard_normal(s), F32) for i, s in enumerate(shapes)
    ]
    expected = np.asarray(reference(*(a.astype("float64") for a in arrays)))
    kernel = _fused_kernel(emit, [(s, F32) for s in shapes])
    assert schedule(kernel, target)[0].endswith("gpu.default")
    (y,) = run(kernel, target, arrays, [expected.shape])
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-6)


@every_gpu
def test_any_number_of_rows_is_added(target: Target) -> None:
    n = tirx.Var("n", "int64")
    kernel = _fused_kernel(lambda bb, x, y: relax.op.add(x, y), [([n, 260], F32)] * 2)
    for rows in (1, 7, 50):
        x, y = _normal(0, rows, 260), _normal(1, rows, 260)
        (found,) = run(kernel, target, [x, y], [(rows, 260)])
        np.testing.assert_array_equal(found, x + y)


@every_gpu
def test_rows_are_taken_for_any_number_of_indices(target: Target) -> None:
    n, s = tirx.Var("n", "int64"), tirx.Var("s", "int64")
    kernel = _fused_kernel(
        lambda bb, x, i: relax.op.take(x, i, axis=0, mode="clip"), [([n, 96], F32), ([s], I32)]
    )
    table = _normal(0, 50, 96)
    for count in (1, 7):
        index = np.arange(count, dtype=I32) * 3
        (y,) = run(kernel, target, [table, index], [(count, 96)])
        np.testing.assert_array_equal(y, table[index])


def test_double_precision_is_refused() -> None:
    kernel = _fused_kernel(lambda bb, x: relax.op.add(x, x), [([5, 64], "float64")])
    with pytest.raises(FabricError, match="onto the target opencl"):
        schedule(kernel, OPENCL)
