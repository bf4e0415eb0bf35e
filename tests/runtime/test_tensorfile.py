"""Our safetensors files are those of the safetensors library, and always the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime.files import FileError
from bitfabric.runtime.tensorfile import read_metadata, read_tensors, write_tensors
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.long.name": np.array([1, -2, 3], np.int32),
    "half": np.array([[0.5]], np.float16),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "empty": np.zeros((0, 4), np.float32),
}
METADATA = {"format": "pt", "z": "ü", "a": '{"quoted": 1}'}


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, METADATA)
    for name, tensor in load_file(path).items():
        np.testing.assert_array_equal(tensor, TENSORS[name])
        assert tensor.dtype == TENSORS[name].dtype
    with safe_open(path, "np") as file:
        assert file.metadata() == METADATA
        assert set(file.keys()) == set(TENSORS)


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    written = {name: np.ascontiguousarray(tensor) for name, tensor in TENSORS.items()}
    save_file(written, path, METADATA)
    tensors, metadata = read_tensors(path)
    assert metadata == METADATA == read_metadata(path)
    assert set(tensors) == set(written)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, written[name])


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    values = torch.randn(4, 5).bfloat16()
    save_torch({"x": values}, tmp_path / "file")
    tensors, _ = read_tensors(tmp_path / "file")
    assert tensors["x"].dtype == np.float32
    np.testing.assert_array_equal(tensors["x"], values.float().numpy())


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tensors(tmp_path / name, TENSORS, METADATA)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"x": np.ones(100, np.float32)}, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileError, match="damaged"):
        read_tensors(path)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"\x80\x04" + b"pickle" * 10, (12).to_bytes(8, "little") + b"[1, 2, 3, 4]"):
        path.write_bytes(content)
        with pytest.raises(FileError, match="damaged"):
            read_tensors(path)
