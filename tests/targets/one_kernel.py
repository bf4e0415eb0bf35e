"""One kernel laid out for a target and run on the device here."""

from __future__ import annotations

import numpy as np
from bitfabric.models.kernels import rms_norm
from bitfabric.targets import Target

from ..schedules.kernel_harness import prim_func, run


def compare_a_norm(target: Target) -> None:
    """Compare a root-mean-square norm on the target's device with float64."""
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((5, 96)), random.standard_normal(96)
    function = prim_func(
        "rms_norm",
        lambda bb, a, b: rms_norm(bb, a, b, 1e-5),
        [((5, 96), "float32"), ((96,), "float32")],
    )
    inputs = [x.astype(np.float32), weight.astype(np.float32)]
    (found,) = run(function, target, inputs, [(5, 96)])
    right = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
