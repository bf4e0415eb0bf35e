"""The adapters' thin factors and gradients agree with float64, for few tokens and for many."""

from __future__ import annotations

from copy import copy

import numpy as np
import pytest
from bitfabric.models.kernels import Norm
from bitfabric.models.kernels.bitlinear_vjp import bitlinear_vjp
from bitfabric.schedules.gpu.bitlinear_vjp import Lora
from bitfabric.schedules.gpu.elements import over_rows, store
from bitfabric.schedules.gpu.halves import Halves
from bitfabric.schedules.gpu.kernel import Gpu, build
from bitfabric.schedules.gpu.lora_gradients import FEW, emit_gradients
from bitfabric.schedules.gpu.straight_matrix import thin_factors
from bitfabric.schedules.ternary import segments
from bitfabric.targets import Target
from bitfabric.targets.opencl import ADRENO, OPENCL
from tvm import relax, tirx
from tvm.tirx.script.builder import ir as T

from .kernel_harness import every_gpu, layouts, prim_func, run, tolerance
from .linear_reference import LinearCase
from .test_cpu_bitlinear import _close, _group

# As many columns as rows, so that dx has the shape of dy.
CASES = {
    "few tokens": LinearCase(_group(176, (96, 32, 48), (True, False, True)), 19, 8, 2.0, False),
    "rank of no vectors": LinearCase(_group(64, (48, 16), (True, True)), 33, 5, 0.5, False),
    "many ranks": LinearCase(_group(96, (64, 32), (False, True)), 17, 20, 1.5, False),
    "many tokens": LinearCase(
        _group(144, (32, 64, 48), (True, True, False)), FEW + 75, 12, 1.5, False
    ),
    "whole slabs": LinearCase(_group(128, (128,), (True,)), 2 * FEW, 4, 1.0, False),
}
every_case = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


WEIGHT_SEED, EPSILON = 5, 1e-5


def _function(case: LinearCase, normed: bool) -> tirx.PrimFunc:
    """Return the adjoint of a group, with a norm before it or without."""
    shapes = [case.dy.shape, *(array.shape for array in case.inputs)]
    dtypes = ["float32", *(str(array.dtype) for array in case.inputs)]
    if normed:
        shapes.insert(4, (case.group.inputs,))
        dtypes.insert(4, "float32")

    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        norm = Norm(v[4], EPSILON) if normed else None
        parameters = case.group.parameters(case.lora_scale)
        return bitlinear_vjp(bb, *v[:4], parameters, tuple(v[-2:]), norm)

    return prim_func("bitlinear_vjp", emit, list(zip(shapes, dtypes, strict=True)))


def _kernel(case: LinearCase, target: Target, normed: bool) -> tirx.PrimFunc:
    """Return the factors' and gradients' launches; dx is what the halves say that dy was."""
    function, gpu = _function(case, normed), Gpu(target)
    parts = segments(dict(function.attrs["fabric.params"].items()))

    def body(dy, x, packed, scales, *rest) -> None:  # type: ignore[no-untyped-def]
        *weight, a, b, dx, da, db = rest
        norm = weight[0] if normed else None
        lora = Lora(gpu, parts, case.lora_scale, dy, x, a, b, True, norm, EPSILON)
        halves = Halves(case.tokens, case.tokens, case.group.rows, lambda *_: None)
        thin_factors(lora, parts, scales, halves)

        def restore(t, i, lanes) -> None:  # type: ignore[no-untyped-def]
            words = halves.pairs()[t, i // lanes]
            value = T.Cast("float32x4", T.reinterpret("float16x4", words))
            store(dx, value * T.broadcast(halves.undo[t], lanes), t, i)

        over_rows(gpu, case.tokens, case.group.rows, restore)
        emit_gradients(gpu, case.tokens, lora.skinny(da, db))

    return build(function, body)


def _normed(case: LinearCase) -> tuple[list[np.ndarray], LinearCase]:
    """Return the arguments of an adjoint with a norm, and the case of what comes after it."""
    weight = 1 + 0.1 * np.random.default_rng(WEIGHT_SEED).standard_normal(case.group.inputs)
    x = case.x.astype("float64")
    after = copy(case)
    rms = np.sqrt((x * x).mean(axis=1, keepdims=True) + EPSILON)
    after.x = after.lora_input = (x / rms * weight.astype("float32")).astype("float32")
    return [case.dy, *case.inputs[:3], weight.astype("float32"), *case.inputs[3:]], after


@every_gpu
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@every_case
def test_factors_and_gradients(target: Target, case: LinearCase, normed: bool) -> None:
    if "fp16" not in target.features:
        pytest.skip("the device has no 16-bit floats")
    case = copy(case)
    case.dy = case.dy * (10.0 ** np.random.default_rng(1).uniform(-9, 9, (case.tokens, 1))).astype(
        "float32"
    )
    inputs, after = _normed(case) if normed else ([case.dy, *case.inputs], case)
    _, da, db = after.backward()
    shapes = [case.dy.shape, da.shape, db.shape]
    kernel = _kernel(case, target, normed)
    found = run(kernel, target, inputs, shapes, plain=True)
    _close(found[1], da, 2e-6)
    _close(found[2], db, 2e-6)
    scaled = case.dy * np.repeat(case.scale, case.group.outputs)
    assert (np.abs(found[0] - scaled).max(1) <= 2.0**-11 * np.abs(scaled).max(1)).all()
    again = run(kernel, target, inputs, shapes, plain=True)
    for first, second in zip(found, again, strict=True):
        np.testing.assert_array_equal(first, second)


@layouts(OPENCL, ADRENO)
def test_a_norm_before_the_projections(target: Target) -> None:
    case = CASES["few tokens"]
    inputs, after = _normed(case)
    expected = after.backward()
    found = run(_function(case, True), target, inputs, [e.shape for e in expected])
    for actual, reference in zip(found, expected, strict=True):
        _close(actual, reference, tolerance(target, 2e-6))
