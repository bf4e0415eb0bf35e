"""The adjoint of the ternary projections on graphics processors agrees with float64."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from bitfabric.models.kernels.bitlinear_vjp import bitlinear_vjp
from bitfabric.schedules import schedule
from bitfabric.targets import Target
from bitfabric.targets.opencl import ADRENO, MALI_MODELS, OPENCL
from tvm import relax, tirx

from .kernel_harness import compiled, every_gpu, layouts, prim_func, run, tolerance
from .linear_reference import LinearCase
from .test_cpu_bitlinear import _backward, _close, _group, _types

CASES = {
    "one projection": LinearCase(_group(48, (48,), (False,)), 5, None, 1.0, False),
    "one token": LinearCase(_group(96, (64, 16, 16), (True,) * 3), 1, 8, 2.0, False),
    "a projection without adapter": LinearCase(
        _group(48, (32, 16, 16), (True, False, True)), 13, 5, 1.5, False
    ),
    "only the last adapted": LinearCase(_group(64, (16, 48), (False, True)), 4, 3, 0.5, False),
    "dropout": LinearCase(_group(80, (48, 32), (True, True)), 37, 8, 2.0, True),
    "a whole tile": LinearCase(
        _group(512, (512, 128, 128), (True, False, True)), 128, 16, 2, False
    ),
    "many tokens": LinearCase(_group(48, (32, 64), (True, True)), 531, 5, 2.0, True),
    "long thin products": LinearCase(_group(3136, (3088, 80), (True, True)), 33, 4, 2.0, False),
}
every_layout = layouts(OPENCL, ADRENO, MALI_MODELS[0])
"""In float32, in halves, and in halves without memory shared by a work-group."""
every_case = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


def _run(case: LinearCase, target: Target) -> list[np.ndarray]:
    shapes = [e.shape for e in case.backward()]
    return run(_backward(case), target, [case.dy, *case.inputs], shapes)


@every_layout
@every_case
def test_backward(target: Target, case: LinearCase) -> None:
    for actual, reference in zip(_run(case, target), case.backward(), strict=True):
        _close(actual, reference, tolerance(target, 2e-6))


@every_layout
def test_of_any_token_count(target: Target) -> None:
    group = _group(96, (32, 48), (False, True))
    n = tirx.Var("n", "int64")

    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bitlinear_vjp(bb, *v[:4], group.parameters(2.0), tuple(v[4:]))

    shape = LinearCase(group, 1, 8, 2.0, False)
    types = [((n, group.rows), "float32"), *_types(shape, n, 8)]
    kernel = compiled(prim_func("bitlinear_vjp", emit, types), target)
    device = tvm.runtime.device(target.device, 0)
    for tokens in (1, 19, 70):
        case = LinearCase(group, tokens, 8, 2.0, False)
        expected = case.backward()
        inputs = [tvm.runtime.tensor(array, device) for array in (case.dy, *case.inputs)]
        found = [tvm.runtime.tensor(np.full(e.shape, np.nan, "float32"), device) for e in expected]
        kernel(*inputs, *found)
        for actual, reference in zip(found, expected, strict=True):
            _close(actual.numpy(), reference, tolerance(target, 2e-6))


@every_layout
def test_weights_are_exact(target: Target) -> None:
    case = LinearCase(_group(80, (64, 48), (False, False)), 112, None, 1.0, False)
    case.dy[:] = np.eye(112, dtype="float32")
    (dx,) = _run(case, target)
    scale = np.repeat(case.scale, case.group.outputs)[:, None]
    if "fp16" in target.features:
        scale = scale.astype("float16").astype("float32")
    np.testing.assert_array_equal(dx, case.codes * scale)


@every_layout
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_gradients_of_any_size_keep_their_digits(target: Target, size: float) -> None:
    case = LinearCase(_group(48, (32, 16, 16), (True, False, True)), 13, 5, 1.5, False)
    # Tokens of very different weight in the loss.
    case.dy[:] *= size * 10.0 ** -np.arange(13, dtype="float32")[:, None]
    for actual, expected in zip(_run(case, target), case.backward(), strict=True):
        error = np.linalg.norm(actual - expected, axis=-1)
        allowed = tolerance(target, 3e-6) * np.linalg.norm(expected, axis=-1)
        assert (error <= allowed).all()


@every_gpu
def test_gradients_are_the_same_every_time(target: Target) -> None:
    case = CASES["a whole tile"]
    for first, second in zip(_run(case, target), _run(case, target), strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_rule_is_chosen() -> None:
    for layout in (OPENCL, ADRENO, MALI_MODELS[0]):
        assert schedule(_backward(CASES["dropout"]), layout)[0].endswith("gpu.bitlinear_vjp")
