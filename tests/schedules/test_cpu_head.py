"""Logits and the cross-entropy of the head agree with float64 numpy, on every processor."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from bitfabric.models.kernels import head_loss, logits
from bitfabric.schedules import schedule
from bitfabric.targets import Target, host_cpu
from bitfabric.targets.cpu import AVX512_VNNI, TARGETS
from tvm import relax, tirx

from .kernel_harness import compiles_for_arm, every_target, prim_func, run
from .linear_reference import cross_entropy

F32, I32 = "float32", "int32"
FORMATS = ["int8", "float16"]


def _table(dtype: str, rows: int, columns: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the tensors of a head and the matrix that they mean."""
    rng = np.random.default_rng(3)
    if dtype == "float16":
        table = (rng.standard_normal((rows, columns)) / columns**0.5).astype("float16")
        return [table], table.astype(F32)
    table = rng.integers(-127, 128, (rows, columns)).astype("int8")
    scale = (rng.uniform(0.5, 2.0, rows) / 127 / columns**0.5).astype(F32)
    return [table, scale], table.astype("float64") * scale[:, None]


def _types(arrays: list[np.ndarray]) -> list[tuple[tuple[int, ...], str]]:
    return [(a.shape, str(a.dtype)) for a in arrays]


@every_target
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("size", [(1, 48, 50), (1, 96, 1027), (5, 64, 1999), (17, 96, 333)])
def test_logits(target: Target, dtype: str, symbolic: bool, size: tuple[int, int, int]) -> None:
    tokens, columns, rows = size
    tensors, weight = _table(dtype, rows, columns)
    h = np.random.default_rng(1).standard_normal((tokens, columns)).astype(F32)
    count = tirx.Var("s", "int64") if symbolic else tokens

    def emit(bb: relax.BlockBuilder, h: relax.Var, table: relax.Var, *s: relax.Var) -> relax.Var:
        return logits(bb, h, table, s[0] if s else None)

    function = prim_func("logits", emit, [((count, columns), F32), *_types(tensors)])
    (out,) = run(function, target, [h, *tensors], [(tokens, rows)])
    np.testing.assert_allclose(out, h.astype("float64") @ weight.T, rtol=1e-5, atol=2e-6)


def _loss(
    arrays: list[np.ndarray], scaled: bool, gradient: bool
) -> tuple[tirx.PrimFunc, list[np.ndarray]]:
    """Return the kernel for ``h, labels, factor, *table``, and its arguments in order."""
    h, labels, factor, table, *scale = arrays
    ordered = [h, table, labels, *scale, *([factor] if gradient else [])]

    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        h, table, labels, *rest = v
        return head_loss(
            bb, h, table, rest[0] if scaled else None, labels, rest[-1] if gradient else None
        )

    name = "head_loss" if gradient else "head_loss_forward"
    return prim_func(name, emit, _types(ordered)), ordered


def _arrays(
    dtype: str, tokens: int, columns: int, rows: int, kept: float, gain: float = 1.0
) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(5)
    tensors, weight = _table(dtype, rows, columns)
    h = (gain * rng.standard_normal((tokens, columns))).astype(F32)
    labels = np.where(rng.random(tokens) < kept, rng.integers(0, rows, tokens), -100)
    return [h, labels.astype(I32), np.array([0.37], F32), *tensors], weight


@every_target
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    "size", [(1, 48, 50, 1.0), (13, 96, 333, 0.8), (130, 64, 1001, 0.7), (70, 64, 50, 0.0)]
)
def test_loss_and_gradient(target: Target, dtype: str, size: tuple[int, int, int, float]) -> None:
    arrays, weight = _arrays(dtype, *size)
    function, ordered = _loss(arrays, dtype == "int8", gradient=True)
    loss, dh = run(function, target, ordered, [(size[0],), size[:2]])
    expected_loss, expected_dh = cross_entropy(arrays[0], weight, arrays[1], 0.37)
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-6, atol=0)
    np.testing.assert_allclose(dh, expected_dh, rtol=0, atol=1e-6 * 0.37)
    function, ordered = _loss(arrays, dtype == "int8", gradient=False)
    (alone,) = run(function, target, ordered, [(size[0],)])
    np.testing.assert_array_equal(alone, loss)


@every_target
def test_confident_tokens(target: Target) -> None:
    arrays, weight = _arrays("float16", 70, 64, 501, 1.0, gain=10.0)
    arrays[1] = (arrays[0] @ weight.T).argmax(1).astype(I32)
    function, ordered = _loss(arrays, False, gradient=True)
    loss, _ = run(function, target, ordered, [(70,), (70, 64)])
    expected, _ = cross_entropy(arrays[0], weight, arrays[1], 0.37)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=2e-6)


@every_target
def test_the_rules_keep_the_meaning_of_the_kernels(target: Target) -> None:
    arrays, _ = _arrays("int8", 13, 96, 333, 0.8)
    for gradient in (False, True):
        function, ordered = _loss(arrays, True, gradient)
        shapes = [(13,), (13, 96)][: 1 + gradient]
        plain = run(function, target, ordered, shapes, plain=True)
        for a, b in zip(run(function, target, ordered, shapes), plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_rules_are_chosen(target: Target) -> None:
    arrays, _ = _arrays("int8", 13, 96, 333, 0.8)
    for gradient in (False, True):
        function, _ = _loss(arrays, True, gradient)
        assert schedule(function, target)[0].endswith("cpu.head_loss")


def test_code_for_arm() -> None:
    for dtype in FORMATS:
        arrays, _ = _arrays(dtype, 13, 96, 333, 0.8)
        assert compiles_for_arm(_loss(arrays, dtype == "int8", True)[0])


def test_no_logits_are_kept() -> None:
    """Every buffer of the kernel is smaller than the logits would be by far."""
    arrays, _ = _arrays("int8", 256, 64, 8192, 1.0)
    function, _ = _loss(arrays, True, gradient=True)
    text = schedule(function, AVX512_VNNI)[1].script()
    assert "8192)" not in text.split("func_attr")[1].split("T.parallel")[0]


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    arrays, _ = _arrays("int8", 70, 96, 3000, 0.8)
    function, ordered = _loss(arrays, True, gradient=True)
    configure = tvm.get_global_func("runtime.config_threadpool")
    found = []
    try:
        for threads in (1, 2):
            configure(1, threads)
            found.append(run(function, host_cpu(), ordered, [(70,), (70, 96)]))
    finally:
        configure(1, 0)
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
