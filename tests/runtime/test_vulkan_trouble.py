"""A Vulkan device that runs out of memory, or is lost, in the middle of a training run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import RandomCheckpoint, open_model
from bitfabric.runtime.checkpoint import find_checkpoint
from bitfabric.targets import get_target

from ..parity.conftest import BASE
from .test_device_trouble import train
from .test_vulkan_errors import faulty as faulty
from .test_vulkan_errors import pytestmark as pytestmark  # needs a Vulkan driver

OUT_OF_MEMORY, DEVICE_LOST = "-2", "-4"
DEVICE = {"FABRIC_DEVICE": "vulkan:0"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model with nano's tokenizer, for Vulkan."""
    nano = open_model("nano")
    model = RandomCheckpoint(replace(BASE, vocab_size=nano.config.vocab_size), 3, "random:tiny")
    model.tokenizer_files = nano.tokenizer_files
    path = tmp_path_factory.mktemp("trouble") / "tiny.fabric"
    options = CompileOptions(context=16, lora=LoraOptions(rank=2))
    return compile_model(model, get_target("vulkan"), options, path)


@pytest.fixture(scope="module")
def whole(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the adapter of a run without trouble."""
    adapter = tmp_path_factory.mktemp("whole") / "out"
    code, told = train(bundle, adapter, **DEVICE)
    assert code == 0, told
    return adapter


@pytest.mark.parametrize(
    ("status", "cause", "remedy"),
    [
        (OUT_OF_MEMORY, "Vulkan out of memory", "--micro-batch"),
        (DEVICE_LOST, "Vulkan device lost", "--resume"),
    ],
)
def test_the_last_checkpoint_is_whole(
    bundle: Path,
    whole: Path,
    faulty: str,
    tmp_path: Path,
    status: str,
    cause: str,
    remedy: str,
) -> None:
    broken = tmp_path / "out"
    faults = {"FABRIC_VULKAN_LIB": faulty, "FAULT_SUBMIT": status, "FAULT_SUBMIT_AFTER": "30"}
    code, told = train(bundle, broken, **DEVICE, **faults)
    assert code == 2, told
    assert cause in told
    assert remedy in told
    found = find_checkpoint(broken)
    assert found is not None
    assert 0 < found.progress.step < 6
    code, told = train(bundle, broken, "--resume", **DEVICE)
    assert code == 0, told
    name = "adapter_model.safetensors"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()
