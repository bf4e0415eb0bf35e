"""Damaged safetensors files are refused with a sentence, whatever the damage."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from bitfabric.models import MODULES, open_model
from bitfabric.targets import FabricError

from ..reference import folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = folders.packed(folders.masters("bitnet", torch.float16), inverted=False)
    return folders.write_folder(tmp_path / "m", "bitnet", tensors, folders.AUTOBITLINEAR)


def read_everything(folder: Path) -> None:
    model = open_model(str(folder))
    for layer in range(model.config.num_layers):
        for module in MODULES:
            model.ternary(layer, module)
    for name in model.config.norm_shapes():
        model.norm(name)
    model.embedding()


def test_mutated_headers_raise_nothing_but_a_fabric_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    original = path.read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    refused = 0
    for seed in range(300):
        generator = random.Random(seed)
        content = bytearray(original)
        for _ in range(generator.randint(1, 3)):
            content[generator.randrange(8 + length)] = generator.randrange(256)
        path.write_bytes(content[: generator.choice([None, None, len(content) // 2])])
        try:
            read_everything(folder)
        except FabricError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("length", [0, 1, 2**62, 2**64 - 1])
def test_a_header_of_impossible_length_is_refused_at_once(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(FabricError):
        read_everything(folder)


def test_offsets_beyond_the_file_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    original = path.read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    header = json.loads(original[8 : 8 + length])
    name = next(key for key in header if key.endswith("q_proj.weight"))
    header[name]["data_offsets"] = [0, 2**50]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + original[8 + length :])
    with pytest.raises(FabricError):
        read_everything(folder)
