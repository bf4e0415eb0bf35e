"""bfloat16 lies in memory as 16 bits, is computed in float32, and rounded half to even."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tvm
from bitfabric.schedules.gpu.kernel import barrier, launch, registers, shared
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .programs import program, target
from .runner import both_interfaces, code, compute, needs_device, run, validate
from .test_errors import refused

BF16, NAME = ml_dtypes.bfloat16, "bfloat16"
# Every bit pattern of a finite number, an infinity or a zero; not those of NaN.
ALL = np.arange(1 << 16, dtype="uint16").view(BF16)
FINITE = ALL[np.isfinite(ALL.astype("float32"))]


def numbers(count: int, seed: int = 0) -> np.ndarray:
    """Return random bfloat16s of many sizes."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(count) * 2.0 ** random.integers(-8, 8, count)).astype(BF16)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare bit for bit."""
    assert found.dtype == expected.dtype == BF16
    np.testing.assert_array_equal(found.view("uint16"), expected.view("uint16"))


def f32(v: Any) -> Any:
    return tirx.Cast("float32", v)


def bf16(v: Any) -> Any:
    return tirx.Cast(NAME, v)


@needs_device
@both_interfaces
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 3])
def test_elements_and_vectors_of_buffers(interface: tvm.target.Target, lanes: int) -> None:
    count = 24

    def kernel(x: Any, y: Any) -> None:
        kind = NAME if lanes == 1 else f"{NAME}x{lanes}"
        source = T.decl_buffer([count // lanes], kind, data=x.data)
        sink = T.decl_buffer([count // lanes], kind, data=y.data)
        with launch([count // lanes], [1]) as (i, _):
            T.buffer_store(sink, source[count // lanes - 1 - i], [i])

    x = numbers(count)
    found = run(program([(count, NAME)] * 2, kernel), [x, np.zeros_like(x)], interface)[1]
    same(found, x.reshape(-1, lanes)[::-1].ravel())


@needs_device
@pytest.mark.parametrize("without", [(), ("int16", "float16")], ids=["narrow", "words"])
@pytest.mark.parametrize("memory", [shared, registers], ids=["shared", "registers"])
def test_arrays(without: tuple[str, ...], memory: Any) -> None:
    def kernel(x: Any, y: Any) -> None:
        with launch([1], [8]) as (_, i):
            held = memory([8], NAME)
            for n in range(8) if memory is registers else [i]:
                T.buffer_store(held, x[n], [n])
            barrier()
            T.buffer_store(y, held[7 - i], [i])

    x = numbers(8)
    same(run(program([(8, NAME)] * 2, kernel), [x, np.zeros_like(x)], target(*without))[1], x[::-1])


@needs_device
def test_every_value_is_widened_exactly_and_comes_back() -> None:
    np.testing.assert_array_equal(compute(f32, FINITE, dtype="float32"), FINITE.astype("float32"))
    same(compute(lambda v: bf16(f32(v)), FINITE), FINITE)


@needs_device
def test_nan_stays_nan() -> None:
    nans = ALL[np.isnan(ALL.astype("float32"))]
    assert np.isnan(compute(lambda v: bf16(f32(v) * 1.0), nans).astype("float32")).all()


@needs_device
def test_float32_is_rounded_half_to_even() -> None:
    random = np.random.default_rng(1)
    bits = random.integers(0, 1 << 32, 4096, dtype="uint32")
    # Ties, and what lies beside them.
    bits = np.concatenate([bits, bits & 0xFFFF0000 | 0x8000, bits & 0xFFFF0000 | 0x8001])
    x = bits.view("float32")
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore"):
        same(compute(bf16, x, dtype=NAME), x.astype(BF16))


ARITHMETIC: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sum": (lambda a, b: a + b, lambda a, b: a + b),
    "difference": (lambda a, b: a - b, lambda a, b: a - b),
    "product": (lambda a, b: a * b, lambda a, b: a * b),
    "least": (tirx.min, np.minimum),
    "greatest": (tirx.max, np.maximum),
    "less": (
        lambda a, b: tirx.Select(a < b, a, b * tirx.const(2, NAME)),
        lambda a, b: np.where(a < b, a, b * np.float32(2)),
    ),
    "same": (
        lambda a, b: tirx.Select(tirx.EQ(a, b), a, tirx.const(-1.5, NAME)),
        lambda a, b: np.where(a == b, a, np.float32(-1.5)),
    ),
}


@needs_device
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_float32s(name: str) -> None:
    body, expected = ARITHMETIC[name]
    a, b = numbers(256), numbers(256, 1)
    b[::7] = a[::7]
    same(compute(body, a, b), expected(a.astype("float32"), b.astype("float32")).astype(BF16))


@needs_device
def test_quotients_and_functions_are_float32s() -> None:
    """To what Vulkan grants float32, which is less than half of a bfloat16's last place."""
    a = np.abs(numbers(256)) + BF16(0.125)
    bodies = [lambda v: tirx.const(1, NAME) / v, tirx.exp, tirx.sqrt, tirx.log]
    found = compute(bodies, a)
    wide = a.astype("float64")
    with np.errstate(over="ignore"):
        expected = np.array([1 / wide, np.exp(wide), np.sqrt(wide), np.log(wide)])
        exact = np.where(np.abs(expected) > 3e38, np.inf, expected)
    np.testing.assert_allclose(found.astype("float64"), exact, rtol=2.0**-8 * 1.01, atol=1e-6)


@needs_device
def test_integers_become_numbers_and_numbers_integers() -> None:
    x = np.array([0, 1, -1, 100, -127, 255, 257, 65537, -(2**31)], "int32")
    same(compute(bf16, x, dtype=NAME), x.astype("float32").astype(BF16))
    y = np.array([0.0, 1.5, -1.5, 99.5, -127.0], BF16)
    found = compute(lambda v: tirx.Cast("int32", v), y, dtype="int32")
    np.testing.assert_array_equal(found, np.trunc(y.astype("float32")))


@needs_device
@both_interfaces
def test_a_product_of_matrices_adds_in_float32(interface: tvm.target.Target) -> None:
    rows, inner = 8, 64

    def kernel(a: Any, b: Any, c: Any) -> None:
        with launch([rows], [rows]) as (i, j):
            total = registers([1], "float32")
            T.buffer_store(total, T.float32(0), [0])
            with T.serial(inner) as k:
                product = f32(a[i * inner + k]) * f32(b[j * inner + k])
                T.buffer_store(total, total[0] + product, [0])
            T.buffer_store(c, bf16(total[0]), [i * rows + j])

    a, b = numbers(rows * inner), numbers(rows * inner, 1)
    sizes = [(rows * inner, NAME)] * 2 + [(rows * rows, NAME)]
    found = run(program(sizes, kernel), [a, b, np.zeros(rows * rows, BF16)], interface)[2]
    wide = [each.astype("float64").reshape(rows, inner) for each in (a, b)]
    largest = np.abs(wide[0]) @ np.abs(wide[1].T)
    error = np.abs(found.astype("float64").reshape(rows, rows) - wide[0] @ wide[1].T)
    assert (error <= 2.0**-8 * np.abs(wide[0] @ wide[1].T) + 1e-5 * largest).all()


@both_interfaces
def test_a_module_is_valid_and_asks_only_buffers_and_integers_of_16_bits(
    interface: tvm.target.Target, tmp_path: Path
) -> None:
    def kernel(x: Any) -> None:
        with launch([1], [1]) as (i, _):
            T.buffer_store(x, x[i] * x[i], [i])

    made = code(program([(1, NAME)], kernel), interface)
    assert validate(made, tmp_path) == ""
    wanted = {"storageBuffer16BitAccess"}
    if made.addresses:
        wanted |= {"bufferDeviceAddress", "shaderInt16"}
    assert set(made.features) == wanted


def test_a_target_without_16_bit_buffers_is_refused() -> None:
    def kernel(x: Any) -> None:
        with launch([1], [1]) as (i, _):
            T.buffer_store(x, x[i] * x[i], [i])

    assert "a buffer of 16-bit elements" in refused(
        program([(1, NAME)], kernel), target("16bit_buffer")
    )
