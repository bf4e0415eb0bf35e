"""Every packing of ternary codes gives back what was packed, whatever the shape."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from bitfabric.models import packing, ternary
from bitfabric.models.gguf import blocks, open_gguf
from bitfabric.models.gguf.names import permute, unpermute
from bitfabric.models.gguf.writer import Block, write_gguf
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ..reference.gguf_files import pack_i2_s, permuted

FEW = settings(max_examples=40, deadline=None)
SCALES = st.floats(2**-14, 1024, width=16)


def codes(rows: int, columns: int, row_unit: int = 1, column_unit: int = 1) -> st.SearchStrategy:
    """Ternary matrices of up to `rows` by `columns` units."""
    shapes = st.tuples(
        st.integers(1, rows).map(lambda n: n * row_unit),
        st.integers(1, columns).map(lambda n: n * column_unit),
    )
    return shapes.flatmap(lambda shape: arrays(np.int8, shape, elements=st.integers(-1, 1)))


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
@FEW
@given(matrix=codes(5, 3, column_unit=256), scale=SCALES)
def test_blocks_of_256(kind: str, matrix: np.ndarray, scale: float) -> None:
    pack, unpack = {
        "TQ1_0": (blocks.pack_tq1_0, blocks.unpack_tq1_0),
        "TQ2_0": (blocks.pack_tq2_0, blocks.unpack_tq2_0),
    }[kind]
    packed = pack(matrix.reshape(-1), scale)
    back, scales = unpack(packed)
    assert np.array_equal(back.reshape(matrix.shape), matrix)
    assert set(scales.tolist()) == {scale}
    # The package reads ours, and we what it packs: the scale of a block of zeros aside.
    by_row = packed.reshape(len(matrix), -1)
    assert np.array_equal(gguf.dequantize(by_row, Type[kind]), matrix * np.float32(scale))
    theirs, their_scales = unpack(gguf.quantize(matrix * np.float32(scale), Type[kind]).reshape(-1))
    assert np.array_equal(theirs.reshape(matrix.shape), matrix)
    assert set(their_scales.tolist()) <= {scale, 0.0}


@pytest.mark.parametrize("layout", ["x86", "arm"])
@settings(FEW, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(matrix=codes(3, 5, row_unit=2, column_unit=64), scale=st.floats(2**-20, 2**20, width=32))
def test_i2_s(layout: str, matrix: np.ndarray, scale: float) -> None:
    group = blocks.LAYOUTS[layout]
    packed = blocks.pack_i2_s(matrix.reshape(-1), scale, group)
    assert np.array_equal(packed, pack_i2_s(matrix, scale, layout))
    back = blocks.unpack_i2_s(packed[:-32], group)
    assert np.array_equal(back.reshape(matrix.shape), matrix)
    assert packed[-32:-28].view(np.float32)[0] == np.float32(scale)


@FEW
@given(matrix=codes(9, 33, row_unit=4))
def test_hugging_faces(matrix: np.ndarray) -> None:
    assert np.array_equal(ternary.unpack(ternary.pack(matrix)), matrix)


@FEW
@given(matrix=codes(4, 4, row_unit=16, column_unit=16))
def test_our_own(matrix: np.ndarray) -> None:
    assert np.array_equal(packing.unpack(packing.pack(matrix), matrix.shape[1]), matrix)


@FEW
@given(heads=st.integers(1, 5), half=st.integers(1, 9), columns=st.integers(1, 7))
def test_the_order_of_a_heads_rows(heads: int, half: int, columns: int) -> None:
    rows = np.arange(heads * 2 * half * columns).reshape(-1, columns)
    assert np.array_equal(permute(rows, heads), permuted(rows, heads))
    assert np.array_equal(unpermute(permute(rows, heads), heads), rows)


@FEW
@given(
    table=arrays(np.float32, st.tuples(st.integers(1, 9), st.just(64)),
                 elements=st.floats(-100, 100, width=32)),
)  # fmt: skip
def test_q8_0(table: np.ndarray) -> None:
    data = gguf.quantize(table, Type.Q8_0)
    mine = blocks.dequantize_q8_0(data.reshape(-1)).reshape(table.shape)
    assert np.array_equal(mine, gguf.dequantize(data, Type.Q8_0))


@FEW
@given(raw=arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(208))), scale=SCALES)
def test_q6_k(raw: np.ndarray, scale: float) -> None:
    ends = np.full((len(raw), 1), scale, np.float16).view(np.uint8)
    data = np.concatenate([raw, ends], axis=1)
    mine = blocks.dequantize_q6_k(data.reshape(-1)).reshape(len(raw), -1)
    assert np.array_equal(mine, gguf.dequantize(data, Type.Q6_K))


KEYS = st.text(min_size=1, max_size=12).map("general.".__add__)
VALUES = st.one_of(
    st.text(min_size=1, max_size=40),
    st.booleans(),
    st.integers(-(2**31), 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    st.lists(st.text(max_size=8), min_size=1, max_size=9),
    arrays(np.float32, st.integers(1, 9), elements=st.floats(-9, 9, width=32)),
    arrays(np.int32, st.integers(1, 9)),
)


@settings(FEW, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(KEYS.filter("general.alignment".__ne__), VALUES, max_size=6),
    sizes=st.lists(st.integers(1, 40), max_size=5),
)
def test_what_is_written_is_read_by_us_and_by_the_package(
    tmp_path: Path, metadata: dict, sizes: list[int]
) -> None:
    arrays_ = {f"t{i}": np.arange(size, dtype=np.float32) for i, size in enumerate(sizes)}
    tensors = [
        Block(name, "F32", value.shape, lambda value=value: [value])
        for name, value in arrays_.items()
    ]
    path = write_gguf(tmp_path / "w.gguf", metadata, tensors)
    mine = open_gguf(path)
    theirs = gguf.GGUFReader(path)
    assert mine.metadata.keys() == metadata.keys()
    for key, value in metadata.items():
        read = mine.metadata[key]
        listed = value.tolist() if isinstance(value, np.ndarray) else value
        assert (list(read) if isinstance(value, (list, np.ndarray)) else read) == listed
        assert theirs.get_field(key).contents() == listed
    for tensor in theirs.tensors:
        assert np.array_equal(tensor.data, arrays_[tensor.name])
        assert np.array_equal(mine.bytes_of(tensor.name).view(np.float32), arrays_[tensor.name])
