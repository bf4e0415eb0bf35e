"""AdamW on moments of fewer bits: what is decoded, what is stored, and that rounding is fair."""

from __future__ import annotations

import numpy as np
import pytest
from bitfabric.models.kernels import compressed_adamw, moment_type
from bitfabric.targets import Target
from bitfabric.targets.cpu import host_cpu
from tvm import relax, tirx

from .kernel_harness import compiles_for_arm, every_gpu, every_target, prim_func, run

HYPER = np.array([1e-2, 0.9, 0.99, 1e-8, 0.1, 0.5, 1 - 0.9**3, 1 - 0.99**3], "float32")
SIZES = (384, 256 * 40)
every_format = pytest.mark.parametrize("moments", ["bf16", "int8"])


def _function(size: int, moments: str) -> tirx.PrimFunc:
    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return compressed_adamw(bb, v[:4], v[4], moments)

    stored = moment_type(size, moments)
    words = ([int(e) for e in stored.shape], "int32")
    flat = ((size,), "float32")
    return prim_func("compressed_adamw", emit, [flat, words, words, flat, ((8,), "float32")])


def _values(which: int) -> np.ndarray:
    """Return what every code stands for, as a part of its block's largest magnitude."""
    most, exponents = (127, 15) if which == 0 else (255, 31)
    codes = np.arange(most + 1)
    # Three bits of mantissa; the largest code is 1.
    steps = codes - most
    found = np.ldexp(1 + (steps % 8) / 8.0, steps // 8)
    found[0] = 0.0
    assert found[-1] == 1.0
    assert found[1] >= 2.0 ** -(exponents + 1)
    return np.concatenate([found, -found]) if which == 0 else found


def _decoded(words: np.ndarray, size: int, which: int, moments: str) -> np.ndarray:
    if moments == "bf16":
        return (words.view("uint16").astype("uint32") << 16).view("float32").astype("float64")
    codes, tops = words[: size // 4].view("uint8"), words[size // 4 :].view("float32")
    return _values(which)[codes] * np.repeat(tops.astype("float64"), 256)[:size]


def _encoded(values: np.ndarray, which: int, moments: str) -> np.ndarray:
    """Return values as words, rounded to what is nearest."""
    if moments == "bf16":
        bits = values.astype("float32").view("uint32")
        return ((bits + 0x8000) >> 16).astype("uint16").view("int32")
    size = len(values)
    padded = np.pad(values, (0, -size % 256)).reshape(-1, 256)
    tops = np.abs(padded).max(1).astype("float32")
    ratios = (padded / tops[:, None]).reshape(-1)[:size]
    codes = np.concatenate(
        [np.abs(part[:, None] - _values(which)).argmin(1) for part in np.array_split(ratios, 8)]
    )
    return np.concatenate([codes.astype("uint8").view("int32"), tops.view("int32")])


def _check(target: Target, size: int, moments: str, plain: bool = False) -> None:
    rng = np.random.default_rng(size)
    p, g = rng.standard_normal((2, size)).astype("float32")
    m = _encoded(rng.standard_normal(size) * 10.0 ** rng.uniform(-4, 0, size), 0, moments)
    v = _encoded(rng.standard_normal(size) ** 2 * 10.0 ** rng.uniform(-8, 0, size), 1, moments)
    g *= np.float32(10.0) ** rng.uniform(-4, 0, size).astype("float32")
    inputs, function = [p, m, v, g, HYPER], _function(size, moments)
    found = run(function, target, inputs, plain=plain)
    h = HYPER.astype("float64")
    grad = h[5] * g.astype("float64")
    new_m = h[1] * _decoded(m, size, 0, moments) + (1 - h[1]) * grad
    new_v = h[2] * _decoded(v, size, 1, moments) + (1 - h[2]) * grad**2
    new_p = p - h[0] * h[4] * p - h[0] * (new_m / h[6]) / (np.sqrt(new_v / h[7]) + h[3])
    np.testing.assert_allclose(found[0], new_p, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[3], np.zeros(size))
    for which, expected in enumerate((new_m, new_v)):
        actual = _decoded(found[1 + which], size, which, moments)
        if moments == "int8":
            tops = np.abs(np.pad(expected, (0, -size % 256))).reshape(-1, 256).max(1)
            large = (
                np.abs(expected) > 2.0 ** (-14 if which == 0 else -30) * np.repeat(tops, 256)[:size]
            )
        else:
            large = np.abs(expected) > 1e-30
        error = (actual / np.where(expected == 0, 1, expected) - 1)[large]
        bound = 1 / 8 if moments == "int8" else 1 / 128
        assert np.abs(error).max() < bound * 1.001
        # Rounding is right on average: a constant half a step too low would be 0.04, or 0.003.
        assert abs(error.mean()) < 4 * bound / 2 / np.sqrt(large.sum())
    for one, other in zip(found, run(function, target, inputs, plain=plain), strict=True):
        np.testing.assert_array_equal(one, other)


@every_format
def test_the_meaning(moments: str) -> None:
    _check(host_cpu(), 384, moments, plain=True)


@every_target
@every_format
@pytest.mark.parametrize("size", SIZES)
def test_on_processors(target: Target, size: int, moments: str) -> None:
    _check(target, size, moments)


@every_gpu
@every_format
@pytest.mark.parametrize("size", SIZES)
def test_on_graphics_processors(target: Target, size: int, moments: str) -> None:
    _check(target, size, moments)


@every_format
def test_nothing_comes_of_nothing(moments: str) -> None:
    """A buffer of zeros is moments of zeros, and a step without a gradient leaves them so."""
    function, size = _function(384, moments), 384
    words = np.zeros([int(e) for e in moment_type(size, moments).shape], "int32")
    p = np.ones(size, "float32")
    found = run(function, host_cpu(), [p, words, words, np.zeros(size, "float32"), HYPER])
    np.testing.assert_allclose(found[0], 1 - 1e-3, rtol=1e-6)
    for which in (0, 1):
        assert not _decoded(found[1 + which], size, which, moments).any()


@every_format
def test_it_compiles_for_arm(moments: str) -> None:
    assert compiles_for_arm(_function(384, moments))
