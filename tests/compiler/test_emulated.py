"""A bundle for 64-bit Arm, run by an emulator: it trains and writes as the one for this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.compiler.backend import cross_compiler
from bitfabric.compiler.platforms import find_platform, for_host
from bitfabric.models import RandomCheckpoint
from bitfabric.runtime import open_bundle
from bitfabric.runtime.standalone import main
from bitfabric.targets import get_target

from ..parity.conftest import BASE, Compiled
from ..parity.test_training import setting
from .aarch64 import POCL, PYTHON, device_environment, run_python, unpack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the emulator runs programs of Linux"),
]
OPTIONS = CompileOptions(context=12, lora=LoraOptions(rank=4))
# Bytes as tokens take 259 of them.
MODEL = RandomCheckpoint(replace(BASE, vocab_size=300), seed=3, name="random:tiny")
TRIPLE = "aarch64-linux-gnu"

NUMBERS = """
import os, sys
import numpy as np
bundle, given, out, work = sys.argv[1:]
sys.path.insert(0, bundle + "/runtime")
from bitfabric.runtime import Batch, InferenceEngine, TrainingEngine, open_bundle
given = dict(np.load(given))
batch = Batch(*(given.pop(name) for name in ("tokens", "labels", "starts")))
opened = open_bundle(bundle)
found = {}
if work == "all":
    engine = TrainingEngine(opened)
    engine.load_adapter_tensors(given)
    found["loss"] = engine.accumulate(batch, 1 / 12, seed=0)
    found["norm"] = engine.update(learning_rate=1e-3, step=1)
    found["adapter"] = engine.state()["adapter"]
writer = InferenceEngine(opened, [(given, 1.0)], capacity=32)
logits = [writer.prefill(batch.tokens[0, :9]), writer.decode(3)]
np.savez(out, logits=logits, **found)
"""


def compiled(folder: Path, target: str, triple: str | None = None) -> Path:
    """A tiny random model for a target; with the runtime where it is for elsewhere."""
    chosen = get_target(target)
    chosen = for_host(chosen, triple) if triple else chosen
    return compile_model(MODEL, chosen, OPTIONS, folder, with_runtime=triple is not None)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("here") / "tiny.fabric", "cpu")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("there") / "tiny.fabric", "cpu-neon", TRIPLE)


@pytest.fixture(scope="module")
def given(here: Path) -> Path:
    """An adapter and a batch on which rounding decides nothing."""
    adapter, _, batch = setting(Compiled(MODEL, OPTIONS, open_bundle(here)))
    file = here.parent / "given.npz"
    np.savez(file, tokens=batch.tokens, labels=batch.labels, starts=batch.starts, **adapter)
    return file


@pytest.fixture(scope="module")
def expected(here: Path, given: Path) -> dict[str, np.ndarray]:
    """The numbers of this machine."""
    out = here.parent / "here.npz"
    before = sys.argv, sys.path[:]
    sys.argv = ["numbers", str(here), str(given), str(out), "all"]
    try:
        exec(compile(NUMBERS, "numbers", "exec"), {})
    finally:
        sys.argv, sys.path[:] = before
    return dict(np.load(out))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """As close as two targets of one machine are to each other (tests/parity/test_targets.py)."""
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["norm"] == pytest.approx(expected["norm"], rel=1e-4)
    np.testing.assert_allclose(found["adapter"], expected["adapter"], rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-4)


def test_a_processor_computes_what_this_one_computes(
    there: Path, given: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "there.npz"
    run_python(unpack("python", "arm64", PYTHON), NUMBERS, there, given, out, "all")
    assert_same(dict(np.load(out)), expected)


def test_its_own_runner_trains_and_writes(
    here: Path, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "the end"}\n{"text": "an end"}\n')
    root = unpack("python", "arm64", PYTHON)
    run = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    found, wanted = {}, {}
    for name, work in (
        ("train", ["--train", str(data), "--max-steps", "1", "--adapter", "{}", "--json"]),
        ("write", ["--prompt", "the", "--max-new-tokens", "6", "--adapter", "{}", "--json"]),
    ):
        away, home = ([word.format(tmp_path / place) for word in work] for place in ("a", "b"))
        done = run_python(root, run, there / "run.py", *away)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        assert main(here, home) == 0
        wanted[name] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["train"]["train_loss"] == pytest.approx(wanted["train"]["train_loss"], rel=1e-5)
    assert found["write"]["token_ids"] == wanted["write"]["token_ids"]


@pytest.mark.skipif(
    cross_compiler(find_platform(TRIPLE)) is None,
    reason="needs a cross compiler: apt install g++-aarch64-linux-gnu",
)
@pytest.mark.timeout(2400)
def test_a_device_computes_what_this_processor_computes(
    given: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    bundle = compiled(tmp_path / "device.fabric", "opencl", TRIPLE)
    root = unpack("pocl", "arm64", (*PYTHON, *POCL))
    out = tmp_path / "there.npz"
    # Inference alone: PoCL compiles each kernel under the emulator, which takes seconds.
    environment = device_environment(root, tmp_path)
    work = bundle, given, out, "inference"
    run_python(root, NUMBERS, *work, environment=environment, timeout=2300)
    found = np.load(out)["logits"]
    np.testing.assert_allclose(found, expected["logits"], rtol=1e-4, atol=1e-4)
