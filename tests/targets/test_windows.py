"""Windows of a tensor: they fit, they follow each other, and no vector lies in two of them."""

from __future__ import annotations

import math

import pytest
from bitfabric.targets import FabricError
from bitfabric.targets.windows import item_bytes, windows
from hypothesis import given
from hypothesis import strategies as st

DTYPES = {
    "int8": 1,
    "bool": 1,
    "float16": 2,
    "int32": 4,
    "float32": 4,
    "float64": 8,
    "float32x4": 16,
}
MIB = 1 << 20


@given(
    shape=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    dtype=st.sampled_from(sorted(DTYPES)),
    limit=st.integers(256, 1 << 15),
)
def test_windows_cover_the_tensor(shape: list[int], dtype: str, limit: int) -> None:
    size, total = DTYPES[dtype], math.prod(shape)
    assert item_bytes(dtype) == size
    found = windows(shape, dtype, limit)
    if total * size <= limit:
        assert found is None
        return
    assert found is not None
    counts = [math.prod(window) for window in found]
    assert sum(counts) == total
    assert max(counts) * size <= limit
    assert set(counts[:-1]) == {counts[0]}
    assert 0 < counts[-1] <= counts[0]
    assert counts[0] % 16 == 0
    assert counts[0] * size % 64 == 0
    inner = found[0][1:]
    assert all(window[1:] == inner for window in found)
    assert inner == tuple(shape[len(shape) - len(inner) :])


def test_a_tensor_is_cut_between_rows() -> None:
    found = windows((128256, 2560), "float16", 128 * MIB)
    assert found is not None
    assert all(columns == 2560 for _, columns in found)
    assert len(found) == math.ceil(128256 * 2560 * 2 / (128 * MIB))


def test_rows_that_are_too_large_are_cut_themselves() -> None:
    assert windows((2, 40), "float32", 128) == [(32,), (32,), (16,)]
    assert windows((2, 1, 48), "int8", 64) == [(64,), (32,)]


def test_an_odd_row_moves_the_cut_to_whole_vectors() -> None:
    assert windows((40, 3), "float32", 256) == [(16, 3), (16, 3), (8, 3)]


def test_a_limit_below_a_vector_is_refused() -> None:
    with pytest.raises(FabricError, match="less than one vector"):
        windows((100,), "float32", 63)
