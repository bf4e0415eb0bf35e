"""Arithmetic: integers of every width wrap as C's do, floats agree with numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from .programs import target
from .runner import compute, needs_device

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
Binary = Callable[[Any, Any], Any]


def operands(dtype: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers from the whole range of a type, among them its ends; none of b is zero."""
    random, info = np.random.default_rng(seed), np.iinfo(dtype)
    ends = np.array([info.min, info.max, 0, 1, 7, info.max // 3], dtype)
    a = np.concatenate([ends, random.integers(info.min, info.max, 58, dtype, endpoint=True)])
    b = random.permutation(a)
    # Small divisors, too: quotients of random numbers are mostly zero.
    b[::3] = random.integers(1, 10, b[::3].size, dtype)
    b[b == 0] = 3
    # The one quotient that no integer holds.
    b[(a == info.min) & (b == np.array(-1).astype(dtype))] = 2
    return a, b


def truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b rounded towards zero."""
    quotients = [abs(int(x)) // abs(int(y)) for x, y in zip(a, b, strict=True)]
    signs = [1 if (x < 0) == (y < 0) else -1 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    return np.array([q * s for q, s in zip(quotients, signs, strict=True)], a.dtype)


OPERATIONS: dict[str, tuple[Binary, Binary]] = {
    "add": (lambda a, b: a + b, np.add),
    "subtract": (lambda a, b: a - b, np.subtract),
    "multiply": (lambda a, b: a * b, np.multiply),
    "truncated_quotient": (tirx.div, truncated),
    "truncated_rest": (tirx.truncmod, lambda a, b: a - truncated(a, b) * b),
    "floored_quotient": (tirx.floordiv, np.floor_divide),
    "floored_rest": (tirx.floormod, np.remainder),
    "minimum": (tirx.min, np.minimum),
    "maximum": (tirx.max, np.maximum),
    "and": (tirx.bitwise_and, np.bitwise_and),
    "or": (tirx.bitwise_or, np.bitwise_or),
    "xor": (tirx.bitwise_xor, np.bitwise_xor),
    "less": (lambda a, b: tirx.Select(a < b, a, b), lambda a, b: np.where(a < b, a, b)),
    "less_equal": (lambda a, b: tirx.Select(a <= b, b, a), lambda a, b: np.where(a <= b, b, a)),
    "equal": (lambda a, b: tirx.Select(tirx.EQ(a, b), a, b), lambda a, b: np.where(a == b, a, b)),
}

SHIFTS: dict[str, tuple[Binary, Binary]] = {
    "up": (lambda a, b: a << (b & 63), lambda a, b: a << (b & 63)),
    "down": (lambda a, b: a >> (b & 63), lambda a, b: a >> (b & 63)),
}


@needs_device
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_around(dtype: str) -> None:
    a, b = operands(dtype)
    found = compute([emit for emit, _ in OPERATIONS.values()], a, b)
    with np.errstate(over="ignore"):
        for name, result, (_, expect) in zip(OPERATIONS, found, OPERATIONS.values(), strict=True):
            np.testing.assert_array_equal(result, expect(a, b).astype(dtype), err_msg=name)


@needs_device
@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_64_bits_are_exact_as_pairs_of_words(dtype: str) -> None:
    a, b = operands(dtype)
    operations = {**OPERATIONS, **SHIFTS}
    wide = [pair_of(emit, dtype) for emit, _ in operations.values()]
    bodies = [lambda *words, e=emit, n=n: e(*words)[n] for emit in wide for n in range(2)]
    halves = [half.astype("uint32") for x in (a, b) for half in (x.view("uint64") >> 32, x)]
    found = compute(bodies, *halves, dtype="uint32", on=target("int64")).astype("uint64")
    with np.errstate(over="ignore"):
        for i, (name, (_, expect)) in enumerate(operations.items()):
            result = (found[2 * i] << 32 | found[2 * i + 1]).view(dtype)
            np.testing.assert_array_equal(result, expect(a, b), err_msg=name)


def pair_of(emit: Binary, dtype: str) -> Callable[..., list[Any]]:
    """Return an operation on two numbers that come in words and leave in words, high ones first."""

    def joined(high: Any, low: Any) -> Any:
        wide = tirx.Cast("uint64", high) << tirx.const(32, "uint64")
        # A cast would tell TVM that the number is not negative.
        return tirx.reinterpret(dtype, wide | tirx.Cast("uint64", low))

    def body(*words: Any) -> list[Any]:
        bits = tirx.reinterpret("uint64", emit(joined(*words[:2]), joined(*words[2:])))
        return [tirx.Cast("uint32", bits >> tirx.const(shift, "uint64")) for shift in (32, 0)]

    return body


@needs_device
@pytest.mark.parametrize("dtype", INTEGERS)
def test_shifts_keep_the_sign_of_what_has_one(dtype: str) -> None:
    a, _ = operands(dtype)
    by = (np.arange(a.size) % np.iinfo(dtype).bits).astype(dtype)
    found = compute([lambda x, n: x >> n, lambda x, n: x << n, lambda x, n: ~x], a, by)
    for result, expected in zip(found, (a >> by, a << by, ~a), strict=True):
        np.testing.assert_array_equal(result, expected)


@needs_device
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_floats(dtype: str) -> None:
    random = np.random.default_rng(0)
    a, b = (
        (random.uniform(0.5, 8, 64) * random.choice([-1, 1], 64)).astype(dtype) for _ in range(2)
    )
    names = ("add", "subtract", "multiply", "minimum", "maximum", "less", "less_equal")
    pairs = [*[OPERATIONS[name] for name in names], (tirx.div, np.divide)]
    found = compute([emit for emit, _ in pairs], a, b)
    for name, result, (_, expect) in zip((*names, "div"), found, pairs, strict=True):
        tolerance = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(result, expect(a, b), tolerance, tolerance, err_msg=name)


@needs_device
def test_float16_without_the_ability_is_computed_in_float32() -> None:
    a = np.random.default_rng(0).standard_normal(64).astype("float16")
    found = compute(lambda x: x * x + x, a, on=target("float16"))
    np.testing.assert_allclose(found, a * a + a, rtol=2e-3, atol=1e-3)
