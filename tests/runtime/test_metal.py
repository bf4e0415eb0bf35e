"""Metal's runtime side and its kernels, on a processor that stands in for a Mac.

Code, loader, buffers and kernels are the true ones; only Apple's libraries and TVM's over them are
not (`metal_stand_in.cc`), and a kernel is compiled as C++ (`tests/compiler/metal/stand_in`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import ModelConfig, RandomCheckpoint
from bitfabric.runtime import open_bundle
from bitfabric.runtime.backends import backend_status, load_backend
from bitfabric.targets import FabricError, get_target, this_host

from ..compiler.metal.emulation import needs_compiler
from ..parity.conftest import BASE, Compiled
from ..parity.test_training import setting

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(sys.platform == "darwin", reason="a Mac needs no stand-in"),
]
ROOT = Path(__file__).resolve().parents[2]
MATRICES = replace(BASE, hidden_size=128, intermediate_size=192, head_dim=32)

NUMBERS = """
import json, sys
import numpy as np
from bitfabric.runtime import Batch, inference_engine, open_bundle, training_engine
from bitfabric.runtime.backends import devices
from bitfabric.targets import APIS
bundle, given, out, work = sys.argv[1:]
given = dict(np.load(given))
batch = Batch(*(given.pop(name) for name in ("tokens", "labels", "starts")))
opened = open_bundle(bundle)
found = {}
if work != "train":
    writer = inference_engine(opened, [(given, 1.0)], capacity=64)
    if work == "all":
        found["prefill"] = writer.prefill(batch.tokens[0, : batch.tokens.shape[1] * 3 // 4])
    found["decode"] = [writer.decode(token) for token in (3, 5, 7)]
if work != "decode":
    engine = training_engine(opened)
    engine.load_adapter_tensors(given)
    found["evaluated"] = engine.evaluate(batch)
    for step in (1, 2):
        found[f"loss {step}"] = engine.accumulate(batch, 1 / 12, seed=0)
        for name, value in engine.gradient_tensors().items():
            found[f"gradient {step} {name}"] = value
        found[f"norm {step}"] = engine.update(learning_rate=1e-3, step=step, clip_norm=1.0)
    found["adapter"] = engine.state()["adapter"]
np.savez(out, **found)
if opened.kind == "metal":
    (device,) = devices("metal")
    print(json.dumps([device, APIS["metal"].judge(device).target]))
"""


def numbers(
    folder: Path, config: ModelConfig, context: int, work: str, resident: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """Return the numbers of the processor and of the stand-in, and what the latter printed.

    With so many `resident` layers the stand-in's are read as they are needed.
    """
    model = RandomCheckpoint(config, seed=3, name="random:tiny")
    options = CompileOptions(context=context, lora=LoraOptions(rank=4))
    here = compile_model(model, get_target("cpu"), options, folder / "cpu.fabric")
    target = get_target("metal").with_host(this_host())
    streamed = replace(options, resident_layers=resident)
    there = compile_model(model, target, streamed, folder / "metal.fabric")
    adapter, _, batch = setting(Compiled(model, options, open_bundle(here)))
    given = folder / "given.npz"
    np.savez(given, tokens=batch.tokens, labels=batch.labels, starts=batch.starts, **adapter)
    program = folder / "program.py"
    program.write_text(NUMBERS)
    found, said = [], ""
    mac = ["-m", f"{__package__}.metal_emulator", str(folder)]
    for bundle, prefix in ((here, []), (there, mac)):
        out = folder / f"{bundle.name}.npz"
        command = [sys.executable, *prefix, str(program), str(bundle), str(given), str(out), work]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        found.append(dict(np.load(out)))
        said = done.stdout
    return found[0], found[1], said


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """As close as any device's numbers, whose adjoints take 16-bit floats.

    What follows a step, which goes by the gradients' signs, is less so.
    """
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        if name.startswith(("gradient", "norm", "adapter")):
            allowed = 1e-2 if " 2" in name else 2e-3
            assert np.linalg.norm(found[name] - right) <= allowed * np.linalg.norm(right), name
        else:
            near = 1e-3 if " 2" in name else 2e-5
            np.testing.assert_allclose(found[name], right, rtol=near, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_a_token_is_written_as_the_processor_writes_it(tmp_path: Path) -> None:
    config = replace(BASE, num_layers=1)
    here, there, said = numbers(tmp_path, config, 12, "decode")
    assert_same(there, here)
    device, target = json.loads(said)
    assert target == "metal-m2"
    assert device["name"] == "Apple M2 Pro"
    assert device["families"] == ["Apple7", "Apple8"]
    assert device["max_buffer"] == 9 << 30
    assert device["unified_memory"] is True


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_layers_that_are_read_as_they_are_needed_give_the_processors_numbers(
    tmp_path: Path,
) -> None:
    config = replace(BASE, num_layers=3)
    here, there, _ = numbers(tmp_path, config, 12, "all", resident=0)
    assert_same(there, here)
    plan = json.loads((tmp_path / "metal.fabric" / "manifest.json").read_text())["plan"]
    assert plan["resident_layers"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("config", "context"), [(BASE, 12), (MATRICES, 64)], ids=["few tokens", "matrices"]
)
def test_training_and_writing_give_the_processors_numbers(
    config: ModelConfig, context: int, tmp_path: Path
) -> None:
    here, there, _ = numbers(tmp_path, config, context, "all")
    assert_same(there, here)
    launched = "".join(file.read_text() for file in tmp_path.glob("*_kernel*.cc"))
    assert ("simdgroup_multiply_accumulate(" in launched) == (context > 48)


def test_without_macos_metal_is_apples() -> None:
    with pytest.raises(FabricError, match="Metal is Apple's: this computer does not run macOS"):
        load_backend("metal")
    status = backend_status("metal")
    assert status["problem"].startswith("Metal is Apple's")
    assert status["library"] is None
