"""A matrix of 1.6 bits a weight gives the same as one of 2 bits, to the last bit, everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bitfabric.models.packing import PACKINGS, pack, unpack
from bitfabric.targets import Target
from bitfabric.targets.cpu import host_cpu
from bitfabric.targets.opencl import ADRENO, MALI, OPENCL

from .kernel_harness import compiles_for_arm, every_target, layouts, run, tolerance
from .linear_reference import LinearCase
from .test_cpu_bitlinear import _backward, _close, _forward, _group
from .test_fused_bitlinear import FusedCase

WIDTHS = (16, 32, 48, 64, 80)
"""Columns with every remainder that a word of 20 leaves."""
some_widths = pytest.mark.parametrize("width", [32, 144])


def _cases(tokens: int, width: int, rank: int | None) -> list[LinearCase]:
    """Return the same case in each packing, the 2-bit one first."""
    group = _group(width, (48, 16), (rank is not None, False))
    return [LinearCase(replace(group, packing=name), tokens, rank, 2.0, False) for name in PACKINGS]


def _check_forward(target: Target, tokens: int, width: int, rank: int | None) -> None:
    two, five = (
        run(_forward(case), target, case.inputs, [(case.tokens, case.group.rows)])[0]
        for case in _cases(tokens, width, rank)
    )
    np.testing.assert_array_equal(two, five)
    _close(five, _cases(tokens, width, rank)[0].forward(), 1e-6)


def _check_backward(target: Target, tokens: int, width: int) -> None:
    two, five = _cases(tokens, width, 5)
    shapes = [e.shape for e in two.backward()]
    found = [run(_backward(c), target, [c.dy, *c.inputs], shapes) for c in (two, five)]
    for one, other, expected in zip(*found, two.backward(), strict=True):
        np.testing.assert_array_equal(one, other)
        _close(other, expected, tolerance(target, 2e-6))


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=list(PACKINGS))
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_packed_comes_back(packing: object, width: int) -> None:
    codes = np.random.default_rng(width).integers(-1, 2, (48, width)).astype(np.int8)
    packed = pack(codes, packing)
    np.testing.assert_array_equal(unpack(packed, width, packing), codes)


def test_published_sizes_take_hardly_more_than_they_must() -> None:
    for hidden, intermediate in ((2048, 3584), (4096, 12032), (5120, 13824)):
        for width in (hidden, intermediate):
            words = pack(np.zeros((16, width), np.int8), PACKINGS["1.6bit"])
            assert words.nbytes * 8 / (16 * width) < 1.61


def test_bytes_are_those_of_tq1_0() -> None:
    """Against llama.cpp's own code for five digits: 3^4 a + .. + e, as a fraction of 243."""
    digits = np.stack(np.meshgrid(*[np.arange(3)] * 5, indexing="ij"), axis=-1).reshape(-1, 5)
    value = digits @ [81, 27, 9, 3, 1]
    expected = (value * 256 + 242) // 243
    rows = np.zeros((256, 20), np.int8)
    rows[: len(digits), ::4] = digits - 1
    rows[:, [c for c in range(20) if c % 4]] = -1
    packed = pack(np.concatenate([rows] * 4, axis=1), PACKINGS["1.6bit"])
    found = packed.view(np.uint8).reshape(16, 4, 16, 4)[:, 0, :, 0].reshape(-1)
    np.testing.assert_array_equal(found[:243], expected)


@every_target
@some_widths
def test_forward_on_processors(target: Target, width: int) -> None:
    for tokens in (1, 7):
        _check_forward(target, tokens, width, 3)


@every_target
def test_backward_on_processors(target: Target) -> None:
    _check_backward(target, 7, 144)


@layouts(OPENCL, MALI)
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_forward_on_graphics_processors(target: Target, tokens: int) -> None:
    # Without adapters: how their sums are cut depends on the number of words.
    _check_forward(target, tokens, 144, None)


@layouts(OPENCL, ADRENO)
def test_backward_on_graphics_processors(target: Target) -> None:
    _check_backward(target, 7, 144)


@every_target
def test_a_fused_token_on_processors(target: Target) -> None:
    _check_fused(target)


@layouts(OPENCL)
def test_a_fused_token_on_graphics_processors(target: Target) -> None:
    _check_fused(target)


def _check_fused(target: Target) -> None:
    case = FusedCase(112, (96,), (True,), 8, "relu2", True, True)
    two, five = (
        run(c.function(), target, c.arguments, [c.added.shape])[0]
        for c in (case, replace(case, packing="1.6bit"))
    )
    _close(five, two, 1e-6)
    _close(five, case.expected(), 2e-6)


def test_the_meaning() -> None:
    target = host_cpu()
    case = _cases(3, 48, 2)[1]
    shapes = [e.shape for e in case.backward()]
    (y,) = run(_forward(case), target, case.inputs, [(3, case.group.rows)], plain=True)
    _close(y, case.forward(), 1e-6)
    found = run(_backward(case), target, [case.dy, *case.inputs], shapes, plain=True)
    for actual, expected in zip(found, case.backward(), strict=True):
        _close(actual, expected, 2e-6)


def test_code_for_arm() -> None:
    group = _group(48, (32, 16, 16), (True, False, True))
    case = LinearCase(replace(group, packing="1.6bit"), 13, 5, 1.5, False)
    assert compiles_for_arm(_forward(case))
    assert compiles_for_arm(_backward(case))
