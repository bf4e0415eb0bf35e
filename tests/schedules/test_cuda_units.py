"""Kernels on CUDA's matrix units agree with float64 numpy, emulated on the processor."""

from __future__ import annotations

import numpy as np
import pytest
from bitfabric.schedules import schedule
from bitfabric.schedules.decisions import Value, deciding
from bitfabric.schedules.gpu import attention_fragments, head_units
from bitfabric.targets import Target, get_target
from bitfabric.targets.vulkan import NVIDIA
from tvm import tirx

from ..compiler.cuda_emulation import Emulation, missing_compiler
from .linear_reference import cross_entropy
from .test_cpu_head import _arrays, _loss
from .test_gpu_attention import _backward, _Case, _forward

CUDA = get_target("cuda-sm90")
AMPERE = get_target("cuda-sm80")
"""Without warpgroups' products, which the head would take."""
# Heads, key heads, head width, rows, tokens of a row, as in test_gpu_attention.
SIZES = [
    (4, 2, 32, 2, 33),
    (2, 1, 128, 1, 50),
    pytest.param((2, 1, 64, 1, 90), marks=pytest.mark.slow),
]
needs_emulation = pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())


def _run(
    function: tirx.PrimFunc,
    rule: str,
    inputs: list[np.ndarray],
    outputs: list[tuple[int, ...]],
    target: Target = CUDA,
    answers: dict[str, Value] | None = None,
) -> list[np.ndarray]:
    """Return the outputs of a kernel that a rule has laid out, by answers to what it asks; they
    begin as NaN."""
    with deciding(answers or {}) as asked:
        name, scheduled = schedule(function, target)
    assert name.endswith(rule)
    assert asked.values.items() >= (answers or {}).items()
    found = [np.full(shape, np.nan, "float32") for shape in outputs]
    Emulation(scheduled, target)(*inputs, *found)
    return found


def _attention(case: _Case) -> np.ndarray:
    function = _forward(case.shape, case.batch, case.context)
    return _run(function, "attention_fragments", case.inputs, [case.dy.shape])[0]


def _check_adjoint(case: _Case, expected: np.ndarray) -> None:
    function = _backward(case.shape, case.batch, case.context)
    inputs = [case.dy, *case.inputs]
    (actual,) = _run(function, "attention_fragments_vjp", inputs, [case.qkv.shape])
    size = case.shape.heads * case.shape.head_dim
    keys = case.shape.kv_heads * case.shape.head_dim
    for part in np.split(actual - expected, [size, size + keys], axis=1):
        assert np.linalg.norm(part) <= 5e-4 * np.linalg.norm(expected)


@needs_emulation
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.slow
def test_attention_has_the_bits_of_float32(size: tuple[int, ...]) -> None:
    case = _Case(size)
    np.testing.assert_allclose(_attention(case), case.reference.forward(), atol=3e-6)


@needs_emulation
@pytest.mark.slow
def test_two_tiles_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = attention_fragments.Layout(subgroups=4, tiles=2, keys=64)
    choose = staticmethod(lambda *arguments: layout)
    monkeypatch.setattr(attention_fragments.Layout, "choose", choose)
    case = _Case((1, 1, 64, 1, 150))
    np.testing.assert_allclose(_attention(case), case.reference.forward(), atol=3e-6)


@needs_emulation
def test_other_documents_are_not_read() -> None:
    case = _Case((1, 1, 32, 1, 64))
    _, starts, _ = case.inputs
    starts[:] = 0
    starts[:, 32:] = 32
    before = _attention(case)
    case.qkv[:32] = np.nan
    np.testing.assert_array_equal(_attention(case)[32:], before[32:])


@needs_emulation
@pytest.mark.parametrize("size", SIZES)
def test_adjoint(size: tuple[int, ...]) -> None:
    case = _Case(size)
    _check_adjoint(case, case.reference.backward(case.dy))


@needs_emulation
def test_small_gradients_keep_their_bits() -> None:
    """Tokens' outer adjoints from 1 down to 1e-9, each by its own measure."""
    case = _Case((1, 1, 32, 1, 64))
    case.dy *= np.float32(10.0) ** -np.linspace(0, 9, 64, dtype="float32")[:, None]
    function = _backward(case.shape, case.batch, case.context)
    inputs = [case.dy, *case.inputs]
    (actual,) = _run(function, "attention_fragments_vjp", inputs, [case.qkv.shape])
    expected = case.reference.backward(case.dy)
    queries = slice(0, case.shape.head_dim)
    bound = 2e-3 * np.abs(case.dy).max(axis=1, keepdims=True)
    assert (np.abs(actual - expected)[:, queries] <= bound).all()


def check_head(
    arrays: list[np.ndarray],
    weight: np.ndarray,
    dtype: str,
    bound: float,
    target: Target = AMPERE,
    logits: dict[str, Value] | None = None,
    gradient: dict[str, Value] | None = None,
) -> None:
    """Compare loss and gradient with numpy, by answers for either product, and the loss alone."""
    h, labels = arrays[:2]
    logits, gradient = logits or {}, gradient or {}
    function, ordered = _loss(arrays, dtype == "int8", gradient=True)
    rest = target, {**logits, **gradient}
    loss, dh = _run(function, "head_units", ordered, [(len(h),), h.shape], *rest)
    expected, reference = cross_entropy(h, weight, labels, 0.37)
    # Inputs have 11 bits: a logit is off by that much of its own size.
    np.testing.assert_allclose(loss, expected, rtol=0, atol=bound)
    assert np.linalg.norm(dh - reference) <= bound * np.linalg.norm(reference)
    function, ordered = _loss(arrays, dtype == "int8", gradient=False)
    (alone,) = _run(function, "head_units", ordered, [(len(h),)], target, logits)
    np.testing.assert_array_equal(alone, loss)


@needs_emulation
@pytest.mark.parametrize(
    ("dtype", "size"),
    [("int8", (130, 96, 333, 0.6)), ("float16", (60, 64, 200, 0.8)), ("int8", (70, 64, 50, 0.0))],
)
@pytest.mark.slow
def test_loss_and_gradient(dtype: str, size: tuple[int, int, int, float]) -> None:
    check_head(*_arrays(dtype, *size), dtype, 1e-3)


@needs_emulation
def test_chunks_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_units, "LOGITS_BYTES", 2 * 128 * 256)
    check_head(*_arrays("int8", 70, 64, 600, 0.9), "int8", 1e-3)


@needs_emulation
def test_sure_tokens_keep_their_gradients() -> None:
    """All probabilities near one: what is left of them has bits of its own."""
    arrays, weight = _arrays("int8", 70, 64, 301, 1.0, gain=10.0)
    arrays[1] = (arrays[0] @ weight.T).argmax(1).astype("int32")
    check_head(arrays, weight, "int8", 1e-2)


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_vulkan_has_the_head_on_its_units(dtype: str) -> None:
    arrays, _ = _arrays(dtype, 60, 64, 200, 0.8)
    assert schedule(_loss(arrays, dtype == "int8", True)[0], NVIDIA)[0].endswith("head_units")


def test_few_tokens_and_odd_heads_have_the_other_rules() -> None:
    arrays, _ = _arrays("int8", 13, 96, 333, 0.8)
    assert schedule(_loss(arrays, True, True)[0], CUDA)[0].endswith("head_loss")
    case = _Case((1, 1, 44, 1, 64))
    assert schedule(_forward(case.shape, 1, 64), CUDA)[0].endswith("gpu.attention")
    assert schedule(_backward(case.shape, 1, 64), CUDA)[0].endswith("gpu.attention_vjp")
