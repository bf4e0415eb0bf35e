"""Quantisation and packing equal those of transformers, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitfabric.models.ternary import is_ternary, pack, quantize_master, unpack
from transformers.integrations.bitnet import WeightQuant, pack_weights, unpack_weights

CODES = np.random.default_rng(0).integers(-1, 2, (24, 10)).astype(np.int8)


def test_pack_equals_transformers_and_comes_back() -> None:
    expected = pack_weights(torch.as_tensor(CODES.copy())).numpy()
    assert np.array_equal(pack(CODES), expected)
    assert np.array_equal(unpack(expected), CODES)


def test_unpack_equals_transformers_on_every_valid_byte() -> None:
    digits = np.array([[a, b, c, d] for a in range(3) for b in range(3) for c in range(3)
                       for d in range(3)])  # fmt: skip
    packed = (digits << [0, 2, 4, 6]).sum(1).astype(np.uint8).reshape(27, 3)
    with torch.compiler.set_stance("force_eager"):
        expected = unpack_weights(torch.as_tensor(packed), torch.float32).numpy()
    assert np.array_equal(unpack(packed), expected)


def test_the_fourth_bit_pattern_is_not_ternary() -> None:
    assert not is_ternary(unpack(np.array([[0b00_11_01_10]], np.uint8)))


def test_rows_that_fill_no_byte_are_refused() -> None:
    with pytest.raises(ValueError, match="6 rows"):
        pack(CODES[:6])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantization_equals_transformers(dtype: torch.dtype) -> None:
    master = (0.03 * torch.randn(600, 40, generator=torch.Generator().manual_seed(1))).to(dtype)
    with torch.compiler.set_stance("force_eager"):
        expected = WeightQuant.apply(master.float()).numpy()
    weight = quantize_master(master.float().numpy())
    np.testing.assert_allclose(weight.codes * np.float32(weight.scale), expected, rtol=1e-6)
    assert np.array_equal(weight.codes, np.sign(expected))


def test_tiny_masters_use_the_floor_of_the_scale() -> None:
    assert quantize_master(np.full((4, 4), 1e-6, np.float32)).scale == np.float32(1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_show_in_the_scale(value: float) -> None:
    assert not np.isfinite(quantize_master(np.array([[1, value]], np.float32)).scale)
