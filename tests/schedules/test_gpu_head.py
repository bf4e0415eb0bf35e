"""The cross-entropy of the head on graphics processors agrees with float64 numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bitfabric.schedules import schedule
from bitfabric.schedules.gpu import head_chunks, head_loss
from bitfabric.targets import Target
from bitfabric.targets.opencl import OPENCL

from .kernel_harness import every_gpu, run, with_half
from .linear_reference import cross_entropy
from .test_cpu_head import _arrays, _loss

I32 = "int32"
SIZES = [(1, 48, 50, 1.0), (13, 96, 333, 0.8), (130, 64, 1001, 0.6), (70, 64, 50, 0.0)]


def _compare(target: Target, dtype: str, size: tuple[int, int, int, float]) -> None:
    """Compare loss and gradient with numpy, and the loss alone with the loss beside a gradient."""
    target = target if dtype == "int8" else with_half(target)
    arrays, weight = _arrays(dtype, *size)
    function, ordered = _loss(arrays, dtype == "int8", gradient=True)
    loss, dh = run(function, target, ordered, [(size[0],), size[:2]])
    expected_loss, expected_dh = cross_entropy(arrays[0], weight, arrays[1], 0.37)
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-6, atol=0)
    np.testing.assert_allclose(dh, expected_dh, rtol=0, atol=1e-6 * 0.37)
    function, ordered = _loss(arrays, dtype == "int8", gradient=False)
    (alone,) = run(function, target, ordered, [(size[0],)])
    np.testing.assert_array_equal(alone, loss)


@every_gpu
def test_many_tokens(target: Target) -> None:
    """Enough for the largest tiles in both products."""
    _compare(target, "int8", (4096, 64, 3000, 0.9))


@every_gpu
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradient(target: Target, size: tuple[int, int, int, float]) -> None:
    _compare(target, "int8", size)


@every_gpu
def test_a_table_of_halves(target: Target) -> None:
    if "fp16" not in target.features:
        pytest.skip("the device has no 16-bit floats")
    _compare(target, "float16", (13, 96, 333, 0.8))


@every_gpu
@pytest.mark.slow
def test_many_tokens_have_longer_strips(target: Target) -> None:
    _compare(target, "int8", (1030, 16, 150, 0.3))


@every_gpu
@pytest.mark.parametrize("size", [(13, 37, 333, 0.8), (5, 20, 70, 1.0)])
def test_columns_of_any_number(target: Target, size: tuple[int, int, int, float]) -> None:
    _compare(target, "int8", size)


@every_gpu
@pytest.mark.parametrize("size", [(13, 96, 333, 0.8), (70, 48, 256, 0.9)])
def test_chunks_of_the_vocabulary(
    target: Target, size: tuple[int, int, int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_chunks, "LOGITS_BYTES", 4 * 72 * 64)
    _compare(target, "int8", size)


@every_gpu
def test_the_depth_shared_out(target: Target) -> None:
    """A long vocabulary and few columns: several work-groups add to one tile of the gradient."""
    _compare(target, "int8", (9, 32, 3000, 1.0))


@every_gpu
def test_without_shared_memory(target: Target) -> None:
    bare = replace(target, features=target.features - {"shared_memory"})
    _compare(bare, "int8", (70, 20, 70, 0.5))


@every_gpu
def test_confident_tokens(target: Target) -> None:
    arrays, weight = _arrays("int8", 70, 64, 501, 1.0, gain=10.0)
    arrays[1] = (arrays[0] @ weight.T).argmax(1).astype(I32)
    function, ordered = _loss(arrays, True, gradient=True)
    loss, _ = run(function, target, ordered, [(70,), (70, 64)])
    expected, _ = cross_entropy(arrays[0], weight, arrays[1], 0.37)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=4e-6)


def test_the_rule_is_chosen_where_the_table_can_be_read() -> None:
    for gradient in (False, True):
        arrays, _ = _arrays("int8", 13, 96, 333, 0.8)
        assert schedule(_loss(arrays, True, gradient)[0], OPENCL)[0].endswith("gpu.head_loss")
        arrays, _ = _arrays("float16", 13, 96, 333, 0.8)
        function, _ = _loss(arrays, False, gradient)
        assert schedule(function, with_half(OPENCL))[0].endswith("gpu.head_loss")
        assert head_loss.chunks(function, {"scaled": 0}, OPENCL) is None


def test_logits_are_bounded() -> None:
    """No buffer of the kernel is larger than the memory for logits, whatever the vocabulary."""
    arrays, _ = _arrays("int8", 4096, 16, 20_000, 1.0)
    function, _ = _loss(arrays, True, gradient=True)
    found = []
    for line in schedule(function, OPENCL)[1].script().splitlines():
        if "T.alloc_buffer((" in line and "scope" not in line:
            extents = line.split("T.alloc_buffer((")[1].split(")")[0]
            found.append(np.prod([int(e) for e in extents.split(",") if e.strip()]))
    assert 0 < 4 * max(found) <= head_chunks.LOGITS_BYTES
