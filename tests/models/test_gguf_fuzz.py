"""Whatever the bytes of a GGUF file are: an error that says so, soon, and in little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bitfabric.models import MODULES, open_model
from bitfabric.targets import FabricError

from ..reference.gguf_files import tiny, write_gguf

TOKENS = [chr(97 + i) for i in range(26)] + ["ab", "abc"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": ["a b", "ab c"],
    "tokenizer.chat_template": "{{ messages }}",
}
HUGE = (2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = tiny("llama", hidden=32, ffn=64, vocab_size=40, num_hidden_layers=1)
    file = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    return write_gguf(model, file, "F16", metadata=TOKENIZER).read_bytes()


def header_size(content: bytes) -> int:
    """Where the first tensor's bytes begin, near enough: after the last tensor's name."""
    return content.rindex(b"blk.0.") + 64


def survives(file: Path, content: bytes) -> bool:
    """Open and read everything; only a FabricError may come, in a second and 32 MiB."""
    file.write_bytes(content)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        model = open_model(str(file), "x86")
        for layer in range(model.config.num_layers):
            for module in MODULES:
                model.ternary(layer, module)
        for name in model.config.norm_shapes():
            model.norm(name)
        model.embedding()
        model.head()
        return True
    except FabricError:
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 32 << 20
        assert time.perf_counter() - start < 5


def test_the_whole_file_is_read(tmp_path: Path, whole: bytes) -> None:
    assert survives(tmp_path / "m.gguf", whole)


def test_bytes_changed_at_random(tmp_path: Path, whole: bytes) -> None:
    generator = np.random.default_rng(0)
    end = header_size(whole)
    outcomes = []
    for _ in range(300):
        content = bytearray(whole)
        for place in generator.integers(4, end, generator.integers(1, 5)):
            content[place] = generator.integers(0, 256)
        outcomes.append(survives(tmp_path / "m.gguf", bytes(content)))
    assert False in outcomes


def test_numbers_blown_up(tmp_path: Path, whole: bytes) -> None:
    """Every place of the header where a length or a count could stand, made enormous."""
    generator = np.random.default_rng(1)
    for place in [8, 16, *generator.integers(24, header_size(whole), 250).tolist()]:
        number = HUGE[generator.integers(len(HUGE))]
        content = bytearray(whole)
        content[place : place + 8] = struct.pack("<Q", number)
        survives(tmp_path / "m.gguf", bytes(content))


def test_files_cut_anywhere(tmp_path: Path, whole: bytes) -> None:
    generator = np.random.default_rng(2)
    for length in generator.integers(0, len(whole) - 32, 120):
        assert not survives(tmp_path / "m.gguf", whole[:length])


@pytest.mark.parametrize("depth", [1, 3, 10_000])
def test_arrays_inside_arrays(tmp_path: Path, depth: int) -> None:
    nested = struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 0)
    entry = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + nested
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + bytes(64)
    assert not survives(tmp_path / "m.gguf", content)


def test_many_empty_strings_are_not_decoded(tmp_path: Path, whole: bytes) -> None:
    entry = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 18) + bytes(8 << 18)
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry
    assert not survives(tmp_path / "m.gguf", content)
