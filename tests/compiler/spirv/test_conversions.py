"""Casts convert as C's do, and bits stay bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from bitfabric.runtime.backends import devices
from bitfabric.targets.vulkan import SMALL_HALVES
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .programs import target
from .runner import compute, needs_device

NARROW = ("int8", "uint8", "int16", "uint16", "int32", "uint32")


@needs_device
@pytest.mark.parametrize("source", NARROW)
def test_integers_to_integers_wrap_around(source: str) -> None:
    info = np.iinfo(source)
    x = np.array([info.min, info.max, 0, 1, 100, info.max // 2 + 1], source)
    bodies = [lambda v, d=d: tirx.Cast("int32", tirx.Cast(d, v)) for d in (*NARROW, "int64")]
    found = compute(bodies, x, dtype="int32")
    for dtype, result in zip((*NARROW, "int64"), found, strict=True):
        np.testing.assert_array_equal(result, x.astype(dtype).astype("int32"), err_msg=dtype)


@needs_device
@pytest.mark.parametrize("without", [(), ("int64",)], ids=["int64", "pairs"])
def test_floats_to_integers_are_truncated_and_back_again(without: tuple[str, ...]) -> None:
    x = np.array([0.0, 0.5, 1.5, -1.5, 99.99, -100.5, 127.0], "float32")
    dtypes = ("int8", "int16", "int32", "int64")
    bodies = [lambda v, d=d: tirx.Cast("float32", tirx.Cast(d, v)) for d in dtypes]
    for dtype, result in zip(dtypes, compute(bodies, x, on=target(*without)), strict=True):
        np.testing.assert_array_equal(result, np.trunc(x), err_msg=dtype)


@needs_device
def test_64_bit_integers_of_any_size_become_floats() -> None:
    x = np.array([3e9, -3e9, 1e15, -1e15, 2.0**62, -(2.0**62)], "float32")
    body = lambda v: tirx.Cast("float32", tirx.Cast("int64", v) + tirx.const(1, "int64"))  # noqa: E731
    expected = (x.astype("int64") + 1).astype("float32")
    np.testing.assert_allclose(compute(body, x, on=target("int64")), expected, rtol=1e-7)


@needs_device
def test_conditions_and_numbers() -> None:
    x = np.array([0, 1, -1, 5], "int32")
    bodies = [
        lambda v: tirx.Cast("int32", tirx.Cast("bool", v)),
        lambda v: tirx.Cast("int32", tirx.Cast("bool", tirx.Cast("float32", v))),
        lambda v: tirx.Select(tirx.Not(tirx.Cast("bool", v)), 1, 0),
    ]
    found = compute(bodies, x)
    np.testing.assert_array_equal(found, [x != 0, x != 0, x == 0])


HALVES = np.array([1.0, -2.5, 1 / 3, 65504.0, 6e-5, 1e-3, 0.0, -0.0], "float32")


@needs_device
@pytest.mark.parametrize("without", [(), ("float16",)], ids=["native", "in float32"])
def test_float16_is_rounded_to_nearest(without: tuple[str, ...]) -> None:
    found = compute(to_half, HALVES, dtype="uint16", on=target(*without))
    np.testing.assert_array_equal(found, HALVES.astype("float16").view("uint16"))


@needs_device
@pytest.mark.parametrize("without", [(), ("float16",)], ids=["native", "in float32"])
def test_every_float16_is_widened_exactly(without: tuple[str, ...]) -> None:
    """Also those below 2^-14, which a driver takes for zero if it may."""
    bits = np.arange(1 << 16, dtype="uint16")
    has_mode = SMALL_HALVES in devices("vulkan")[0]["features"]
    found = compute(
        lambda v: tirx.Cast("float32", tirx.reinterpret("float16", v)),
        bits,
        dtype="float32",
        on=target(*without, small_halves=has_mode),
    )
    np.testing.assert_array_equal(found, bits.view("float16").astype("float32"))


def to_half(v: Any) -> Any:
    """Return the bits of a number's float16."""
    return tirx.reinterpret("uint16", tirx.Cast("float16", v))


@needs_device
def test_bfloat16_is_rounded_half_to_even_and_computed_in_float32() -> None:
    """As bits: TVM's host code knows no tensors of it."""
    bits = [0x3F808000, 0x3F818000, 0x3F80FFFF, 0x40490FDB, 0xFF7FFFFF, 0x7F800001]
    x = np.array(bits, "uint32").view("float32")

    def squared(v: Any) -> Any:
        narrow = tirx.reinterpret("bfloat16", tirx.reinterpret("uint16", tirx.Cast("bfloat16", v)))
        return tirx.reinterpret("uint16", narrow * narrow)

    bodies = [lambda v: tirx.reinterpret("uint16", tirx.Cast("bfloat16", v)), squared]
    found = compute(bodies, x, dtype="uint16")
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = x.astype(ml_dtypes.bfloat16)
        expected = [narrow.view("uint16"), (narrow * narrow).view("uint16")]
    np.testing.assert_array_equal(found[:, :-1], np.array(expected)[:, :-1])
    assert np.isnan(found[:, -1].view(ml_dtypes.bfloat16).astype("float32")).all()


WORDS = np.array([0x01020304, 0x7F80FF00, 0xFFFFFFFF, 0x80000000, 0x3F800000], "uint32").view(
    "int32"
)


@needs_device
@pytest.mark.parametrize(
    "dtype", ["int8x4", "uint8x4", "int16x2", "uint16x2", "float32", "float16x2"]
)
def test_bits_of_a_word_and_back(dtype: str) -> None:
    x = WORDS if "float16" not in dtype else WORDS[[0, 4]]
    found = compute(lambda v: T.reinterpret("int32", T.reinterpret(dtype, v)), x)
    np.testing.assert_array_equal(found, x)


@needs_device
def test_lanes_of_a_word_are_extended() -> None:
    bodies = [
        lambda v, k=kind, i=i: tirx.Cast("int32", tirx.Shuffle([T.reinterpret(f"{k}8x4", v)], [i]))
        for kind in ("int", "uint")
        for i in range(4)
    ]
    found = compute(bodies, WORDS)
    for kind, lanes in (("int8", found[:4]), ("uint8", found[4:])):
        np.testing.assert_array_equal(lanes.T, WORDS.view(kind).reshape(-1, 4))


@needs_device
def test_floats_to_saturated_bytes_half_to_even() -> None:
    """What quantises activations: the same integers as the processor's code."""
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 300.0, -128.5, -300.0], "float32")

    def body(v: Any) -> Any:
        four = T.call_pure_extern("float32x4", "(float4)", v, -v, v, v)
        octets = T.call_pure_extern("int8x4", "convert_char4_sat_rte", four)
        return T.call_pure_extern("int32", "as_int", octets)

    found = compute(body, x, dtype="int32").view("int8").reshape(-1, 4)
    expected = np.clip(np.rint(x), -128, 127)
    np.testing.assert_array_equal(found[:, 0], expected)
    np.testing.assert_array_equal(found[:, 1], np.clip(np.rint(-x), -128, 127))
    np.testing.assert_array_equal(found[:, 3], expected)
