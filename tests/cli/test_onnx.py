"""Every command of docs/onnx.md does what the page says."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from bitfabric.models import open_model
from bitfabric.runtime.low_rank import LowRank
from bitfabric.runtime.peft_adapter import write_peft

from ..reference.torch_bitnet import random_adapter
from .helpers import fabric, fabric_json

pytest.importorskip("onnxruntime")
from ..reference.onnx_sessions import OnnxDecoder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "onnx.md"
COMMANDS = [
    line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    fabric ")
]
MODULES = ("q_proj", "down_proj")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of nano in ``out/``."""
    folder = tmp_path_factory.mktemp("onnx")
    tensors = random_adapter(open_model("nano").config, 2, MODULES)
    write_peft(folder / "out", LowRank(folder / "out", tensors, rank=2, alpha=4.0), list(MODULES))
    return folder


@pytest.mark.parametrize("line", COMMANDS)
@pytest.mark.slow
def test_a_command_of_the_page(line: str, place: Path) -> None:
    words = shlex.split(line)[1:]
    result = fabric_json(*words, cwd=place)
    if words[0] == "compile":
        assert (place / result["bundle"] / "manifest.json").is_file()
        return
    files = [place / name for name in result["files"]]
    assert files[0] == place / words[words.index("--onnx") + 1]
    assert all(file.is_file() for file in files)
    logits = OnnxDecoder(files[0])(np.array([[5, 9, 11]]))
    assert logits.shape == (1, 3, open_model("nano").config.vocab_size)


@pytest.mark.slow
def test_the_adapter_counts_with_its_weights(place: Path) -> None:
    exports = {"none": [], "whole": ["out/"], "halves": ["out/:0.5", "out/:0.5"], "no": ["out/:0"]}
    logits = {}
    for name, adapters in exports.items():
        flags = [word for adapter in adapters for word in ("--adapter", adapter)]
        path = place / name / "model.onnx"
        fabric_json("export", "nano", "--onnx", path, *flags, cwd=place)
        logits[name] = OnnxDecoder(path)(np.array([[5, 9, 11]]))
    np.testing.assert_allclose(logits["halves"], logits["whole"], rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(logits["no"], logits["none"])
    assert np.abs(logits["whole"] - logits["none"]).max() > 0.1


def test_one_format_at_a_time_and_an_adapter_only_in_onnx(tmp_path: Path) -> None:
    for words in (
        [],
        ["--onnx", "a.onnx", "--gguf", "a.gguf"],
        ["--gguf", "a.gguf", "--adapter", "out/"],
    ):
        done = fabric("export", "nano", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert "Error: " in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    tensors = random_adapter(open_model("random:125M").config, 2, MODULES)
    write_peft(tmp_path / "a", LowRank(tmp_path / "a", tensors, rank=2, alpha=4.0), list(MODULES))
    done = fabric("export", "nano", "--onnx", "m/m.onnx", "--adapter", "a", cwd=tmp_path)
    assert done.returncode == 2
    assert "model" in done.stderr
    assert not (tmp_path / "m").exists()
