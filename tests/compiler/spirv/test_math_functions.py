"""Mathematical functions against numpy's, and what must be exact, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .runner import compute, needs_device

NEAR_ZERO = np.linspace(-3, 3, 61, dtype="float32")
POSITIVE = np.linspace(0.05, 20, 61, dtype="float32")
INSIDE = np.linspace(-0.95, 0.95, 61, dtype="float32")
FUNCTIONS: dict[str, tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]] = {
    "acos": (INSIDE, np.arccos),
    "acosh": (POSITIVE + 1, np.arccosh),
    "asin": (INSIDE, np.arcsin),
    "asinh": (NEAR_ZERO, np.arcsinh),
    "atan": (NEAR_ZERO, np.arctan),
    "atanh": (INSIDE, np.arctanh),
    "ceil": (NEAR_ZERO, np.ceil),
    "cos": (NEAR_ZERO, np.cos),
    "cosh": (NEAR_ZERO, np.cosh),
    "erf": (NEAR_ZERO, lambda x: torch.erf(torch.from_numpy(x)).numpy()),
    "exp": (NEAR_ZERO, np.exp),
    "exp10": (NEAR_ZERO, lambda x: 10**x),
    "exp2": (NEAR_ZERO, np.exp2),
    "floor": (NEAR_ZERO, np.floor),
    "log": (POSITIVE, np.log),
    "log10": (POSITIVE, np.log10),
    "log1p": (POSITIVE * np.float32(1e-3), np.log1p),
    "log2": (POSITIVE, np.log2),
    "round": (np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4], "float32"), np.rint),
    "nearbyint": (np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4], "float32"), np.rint),
    "rsqrt": (POSITIVE, lambda x: 1 / np.sqrt(x)),
    "sigmoid": (NEAR_ZERO, lambda x: 1 / (1 + np.exp(-x))),
    "sin": (NEAR_ZERO, np.sin),
    "sinh": (NEAR_ZERO, np.sinh),
    "sqrt": (POSITIVE, np.sqrt),
    "tan": (INSIDE, np.tan),
    "tanh": (np.concatenate([NEAR_ZERO, np.array([-100, 100, 1e30], "float32")]), np.tanh),
    "trunc": (NEAR_ZERO, np.trunc),
}


COARSE = {"acos", "asin"}
"""Of these Vulkan promises 4096 units in the last place."""


@needs_device
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_one_number(name: str) -> None:
    x, expect = FUNCTIONS[name]
    tolerance = 5e-4 if name in COARSE else 2e-5
    found = compute(getattr(tirx, name), x)
    np.testing.assert_allclose(found, expect(x), rtol=tolerance, atol=5e-7)


@needs_device
def test_functions_of_vectors_keep_tvms_names() -> None:
    """TVM turns scalar calls into calls of C's functions; those of vectors it leaves."""

    def body(v: Any) -> Any:
        four = T.broadcast(v, 4)
        return tirx.Shuffle([tirx.exp(four) + tirx.sqrt(tirx.abs(four))], [2])

    np.testing.assert_allclose(
        compute(body, NEAR_ZERO), np.exp(NEAR_ZERO) + np.sqrt(np.abs(NEAR_ZERO)), rtol=1e-6
    )


@needs_device
def test_functions_of_float16() -> None:
    x = POSITIVE.astype("float16")
    found = compute([tirx.exp2, tirx.sqrt], x / np.float16(4))
    np.testing.assert_allclose(found[0], np.exp2(x / np.float16(4)), rtol=4e-3)
    np.testing.assert_allclose(found[1], np.sqrt(x / np.float16(4)), rtol=2e-3)


@needs_device
def test_powers() -> None:
    x = np.array([2, -2, -2, 0, 0, 3, -1.5, 0, 9], "float32")
    y = np.array([3, 3, 2, 2, 0, -2, -3, -1, 0.5], "float32")
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(compute(tirx.power, x, y), np.power(x, y), rtol=1e-5)
    assert np.isnan(compute(tirx.power, np.float32([-8]), np.float32([0.5]))).all()


@needs_device
def test_functions_of_two_numbers() -> None:
    x, y = NEAR_ZERO + np.float32(0.01), NEAR_ZERO[::-1].copy()
    bodies = [
        lambda a, b: T.call_pure_extern("float32", "atan2f", a, b),
        lambda a, b: T.call_pure_extern("float32", "hypotf", a, b),
        lambda a, b: T.call_pure_extern("float32", "fmodf", a, b + 4),
        lambda a, b: T.call_pure_extern("float32", "fmaxf", a, b),
        tirx.copysign,
    ]
    expected = [
        np.arctan2(x, y),
        np.hypot(x, y),
        np.fmod(x, y + 4),
        np.maximum(x, y),
        np.copysign(x, y),
    ]
    np.testing.assert_allclose(compute(bodies, x, y), expected, rtol=1e-5, atol=1e-6)


@needs_device
def test_what_is_no_number_is_told_by_its_bits() -> None:
    x = np.array([0, -1, np.inf, -np.inf, np.nan, 3e38], "float32")
    bodies = [
        lambda v, f=f: tirx.Select(f(v), 1, 0) for f in (tirx.isnan, tirx.isinf, tirx.isfinite)
    ]
    found = compute(bodies, x, dtype="int32")
    np.testing.assert_array_equal(found, [np.isnan(x), np.isinf(x), np.isfinite(x)])


@needs_device
def test_bits_are_counted() -> None:
    x = np.array([0, 1, -1, 5, 1 << 30, -(2**31)], "int32")
    ones = [bin(int(v) & 0xFFFFFFFF).count("1") for v in x]
    np.testing.assert_array_equal(compute(tirx.popcount, x), ones)
    np.testing.assert_array_equal(compute(tirx.clz, x), [32, 31, 0, 29, 1, 0])
    narrow = np.array([-1, 1, 127, -128], "int8")
    np.testing.assert_array_equal(compute(tirx.popcount, narrow), [8, 1, 7, 1])


@needs_device
def test_a_fused_product_and_sum_is_rounded_once() -> None:
    """Correct quotients depend on it (`quantise.divide`); this device's own is rounded twice."""
    random = np.random.default_rng(0)
    a, b, c = random.standard_normal((3, 4096)).astype("float32")
    c[::2] = -(a * b)[::2]
    c[1::4] *= np.float32(1e-4)

    def body(x: Any, y: Any, z: Any) -> Any:
        return T.call_pure_extern("float32", "fma", x, y, z)

    wide = [v.astype("float64") for v in (a, b, c)]
    np.testing.assert_array_equal(
        compute(body, a, b, c), (wide[0] * wide[1] + wide[2]).astype("float32")
    )


@needs_device
def test_fused_products_of_large_numbers_and_of_none() -> None:
    a = np.array([3e20, np.inf, np.nan, 1e30], "float32")
    b = np.array([2.0, 1.0, 1.0, 1e30], "float32")
    found = compute(lambda x, y: T.call_pure_extern("float32", "fma", x, y, y), a, b)
    np.testing.assert_allclose(found, [6e20, np.inf, np.nan, np.inf], rtol=1e-6)
