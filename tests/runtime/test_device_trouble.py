"""A device that runs out of memory, or is lost, in the middle of a training run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import RandomCheckpoint, open_model
from bitfabric.runtime.checkpoint import find_checkpoint
from bitfabric.targets import get_target

from ..parity.conftest import BASE
from .test_opencl_errors import faulty  # noqa: F401
from .test_opencl_errors import pytestmark as pytestmark  # needs an OpenCL driver

OUT_OF_MEMORY, DEVICE_LOST = "-4", "-36"
DATA = "".join(f'{{"text": "sentence number {i} of a small file"}}\n' for i in range(24))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model with nano's tokenizer, for OpenCL."""
    nano = open_model("nano")
    model = RandomCheckpoint(replace(BASE, vocab_size=nano.config.vocab_size), 3, "random:tiny")
    model.tokenizer_files = nano.tokenizer_files
    path = tmp_path_factory.mktemp("trouble") / "tiny.fabric"
    options = CompileOptions(context=16, lora=LoraOptions(rank=2))
    return compile_model(model, get_target("opencl"), options, path)


def train(bundle: Path, adapter: Path, *more: str, **environment: str) -> tuple[int, str]:
    """Run six steps with a checkpoint after each; return the exit status and what was said."""
    data = adapter.parent / "data.jsonl"
    data.write_text(DATA, encoding="utf-8")
    command = [sys.executable, "-m", "bitfabric.cli", "run", str(bundle), "--train", str(data)]
    command += ["--adapter", str(adapter), "--max-steps", "6", "--save-every", "1", "--seed", "5"]
    run = subprocess.run(
        [*command, *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return run.returncode, run.stderr + run.stdout


@pytest.mark.parametrize(
    ("status", "cause", "remedy"),
    [
        (OUT_OF_MEMORY, "OpenCL out of memory", "--micro-batch"),
        (DEVICE_LOST, "OpenCL device lost", "--resume"),
    ],
)
def test_the_last_checkpoint_is_whole(
    bundle: Path,
    faulty: str,  # noqa: F811
    tmp_path: Path,
    status: str,
    cause: str,
    remedy: str,
) -> None:
    whole = tmp_path / "whole" / "out"
    whole.parent.mkdir()
    assert train(bundle, whole)[0] == 0
    broken = tmp_path / "broken" / "out"
    broken.parent.mkdir()
    code, told = train(
        bundle,
        broken,
        FABRIC_OPENCL_LIB=faulty,
        FAULT_LAUNCH=status,
        FAULT_LAUNCH_AFTER="600",
    )
    assert code == 2, told
    assert cause in told
    assert remedy in told
    found = find_checkpoint(broken)
    assert found is not None
    assert 0 < found.progress.step < 6
    code, told = train(bundle, broken, "--resume")
    assert code == 0, told
    name = "adapter_model.safetensors"
    assert (broken / name).read_bytes() == (whole / name).read_bytes()
