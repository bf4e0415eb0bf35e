"""Ternary products on matrix units agree with exact integers and float64."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from bitfabric.runtime.backends import devices
from bitfabric.schedules import schedule
from bitfabric.targets import MatrixUnit, Target
from bitfabric.targets.vulkan import NVIDIA

from ..devices import missing
from .kernel_harness import device_target, run
from .linear_reference import LinearCase
from .test_cpu_bitlinear import _backward, _close, _forward, _group

COMPONENTS = {("f16", "f32"): ("float16", "float32"), ("s8", "s32"): ("int8", "int32")}
CASES = {
    "ragged": LinearCase(_group(96, (272, 64, 48), (True, False, True)), 101, 8, 2.0, False),
    "whole tiles": LinearCase(_group(64, (128,), (True,)), 64, 3, 0.5, False),
    "no adapter": LinearCase(_group(96, (48,), (False,)), 50, None, 1.0, False),
    "dropout": LinearCase(_group(64, (32, 32), (True, True)), 49, 12, 2.0, True),
    "1.6 bits": LinearCase(
        replace(_group(192, (272, 48), (True, False)), packing="1.6bit"), 101, 8, 2.0, False
    ),
}
every_case = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


@cache
def _units() -> tuple[MatrixUnit, ...]:
    """Return the units of the device here, one of each dtype."""
    found = {}
    for m, n, k, a, b, c, result in [] if missing("vulkan") else devices("vulkan")[0]["matrices"]:
        if a == b and c == result and (a, result) in COMPONENTS:
            found.setdefault(a, MatrixUnit(m, n, k, *COMPONENTS[a, result]))
    return tuple(found.values())


@pytest.fixture(scope="module")
def target() -> Target:
    """Return the target of the device here with its units."""
    if len(_units()) < 2:
        pytest.skip("no Vulkan device here has matrix units; Mesa's lavapipe has from 25.2 on")
    plain = device_target("vulkan")
    options = {**plain.options, "supports_cooperative_matrix": True}
    features = plain.features | {"shared_memory"}
    return replace(plain, options=options, features=features, matrices=_units())


@pytest.mark.slow
@every_case
def test_forward(target: Target, case: LinearCase) -> None:
    assert schedule(_forward(case), target)[0].endswith("ternary_matrix")
    (y,) = run(_forward(case), target, case.inputs, [(case.tokens, case.group.rows)])
    _close(y, case.forward(), 1e-6)


@pytest.mark.slow
@every_case
def test_backward(target: Target, case: LinearCase) -> None:
    assert schedule(_backward(case), target)[0].endswith("straight_matrix")
    expected = case.backward()
    found = run(_backward(case), target, [case.dy, *case.inputs], [e.shape for e in expected])
    # The input's adjoint has 11 bits of each factor, the adapters' gradients are of float32.
    for actual, reference, bound in zip(found, expected, (5e-4, 2e-6, 2e-6, 2e-6), strict=False):
        _close(actual, reference, bound)


@pytest.mark.slow
def test_small_gradients_keep_their_bits(target: Target) -> None:
    """Rows down to 1e-30, where 16 bits end at 6e-8, and one of zeros, each by its own measure."""
    case = LinearCase(_group(96, (48,), (False,)), 50, None, 1.0, False)
    case.dy *= np.float32(10.0) ** -np.linspace(0, 30, case.tokens, dtype="float32")[:, None]
    case.dy[7] = 0.0
    (dx,) = run(_backward(case), target, [case.dy, *case.inputs], [case.x.shape])
    (expected,) = case.backward()
    bound = 5e-4 * np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(dx - expected) <= bound).all()


@every_case
def test_a_named_target_takes_the_units(case: LinearCase) -> None:
    assert schedule(_forward(case), NVIDIA)[0].endswith("ternary_matrix")
    assert schedule(_backward(case), NVIDIA)[0].endswith("straight_matrix")
