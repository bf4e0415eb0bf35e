"""The adapters' thin factors and gradients agree with float64, for few tokens and for many."""

from __future__ import annotations

import numpy as np
import pytest
from bitfabric.schedules.gpu.bitlinear_vjp import Lora
from bitfabric.schedules.gpu.elements import over_rows, store
from bitfabric.schedules.gpu.halves import Halves
from bitfabric.schedules.gpu.kernel import Gpu, build
from bitfabric.schedules.gpu.lora_gradients import FEW, emit_gradients
from bitfabric.schedules.gpu.straight_matrix import thin_factors
from bitfabric.schedules.ternary import segments
from bitfabric.targets import Target
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .kernel_harness import every_gpu, run
from .linear_reference import LinearCase
from .test_cpu_bitlinear import _backward, _close, _group

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


def _kernel(case: LinearCase, target: Target) -> tirx.PrimFunc:
    """Return the factors' and gradients' launches; dx is what the halves say that dy was."""
    function, gpu = _backward(case), Gpu(target)
    parameters = dict(function.attrs["fabric.params"].items())
    parts = segments(parameters)

    def body(dy, x, packed, scales, a, b, dx, da, db) -> None:  # type: ignore[no-untyped-def]
        lora = Lora(gpu, parts, case.lora_scale, dy, x, a, b, whole=True)
        halves = Halves(case.tokens, case.tokens, case.group.rows, lambda *_: None)
        thin_factors(lora, parts, scales, halves)

        def restore(t, i, lanes) -> None:  # type: ignore[no-untyped-def]
            words = halves.pairs()[t, i // lanes]
            value = T.Cast("float32x4", T.reinterpret("float16x4", words))
            store(dx, value * T.broadcast(halves.undo[t], lanes), t, i)

        over_rows(gpu, case.tokens, case.group.rows, restore)
        emit_gradients(gpu, case.tokens, lora.skinny(da, db))

    return build(function, body)


@every_gpu
@every_case
def test_factors_and_gradients(target: Target, case: LinearCase) -> None:
    if "fp16" not in target.features:
        pytest.skip("the device has no 16-bit floats")
    case.dy[:] *= 10.0 ** np.random.default_rng(1).uniform(-9, 9, (case.tokens, 1))
    _, da, db = case.backward()
    inputs, shapes = [case.dy, *case.inputs], [case.dy.shape, da.shape, db.shape]
    found = run(_kernel(case, target), target, inputs, shapes, plain=True)
    _close(found[1], da, 2e-6)
    _close(found[2], db, 2e-6)
    scaled = case.dy * np.repeat(case.scale, case.group.outputs)
    assert (np.abs(found[0] - scaled).max(1) <= 2.0**-11 * np.abs(scaled).max(1)).all()
    for again, before in zip(
        run(_kernel(case, target), target, inputs, shapes, plain=True), found, strict=True
    ):
        np.testing.assert_array_equal(again, before)
