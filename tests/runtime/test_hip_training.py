"""Training through the HIP backend, on a library that runs its launches on the OpenCL device.

The library is as lazy as ROCm's may be, so the adapter comes out right only if every copy, every
argument, extent and lifetime is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model
from bitfabric.models import RandomCheckpoint, open_model
from bitfabric.runtime.checkpoint import find_checkpoint
from bitfabric.targets import Target, get_target
from safetensors.numpy import load_file

from ..devices import missing
from ..parity.conftest import BASE
from .hip_tools import build_standin
from .test_device_trouble import DATA

pytestmark = pytest.mark.skipif(bool(missing("opencl")), reason=missing("opencl"))
PLAIN = frozenset({"shared_memory", "int8_dot"})
"""What PoCL's kernels may use, so ROCm's here."""
STEPS = 4
ADAPTER = "adapter_model.safetensors"


def layouts() -> dict[str, Target]:
    """Return targets that lay all kernels out alike, for each way to run them."""
    rocm = replace(get_target("rocm-gfx90a"), features=PLAIN, matrices=())
    rocm = replace(rocm, limits=replace(rocm.limits, subgroup=0, max_buffer=128 << 20))
    opencl = get_target("opencl")
    options = opencl.options | {
        name: rocm.options[name]
        for name in ("max_threads_per_block", "max_num_threads", "max_shared_memory_per_block")
    }
    same = replace(opencl, options=options, features=PLAIN, limits=rocm.limits)
    return {"rocm": rocm, "opencl": same, "cpu": get_target("cpu")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the library, the data and a tiny model for each way."""
    place = tmp_path_factory.mktemp("hip")
    build_standin(place)
    (place / "data.jsonl").write_text(DATA, encoding="utf-8")
    nano = open_model("nano")
    model = RandomCheckpoint(replace(BASE, vocab_size=nano.config.vocab_size), 3, "random:tiny")
    model.tokenizer_files = nano.tokenizer_files
    options = CompileOptions(context=16, lora=LoraOptions(rank=2))
    for name, target in layouts().items():
        compile_model(model, target, options, place / f"{name}.fabric")
    return place


def run(folder: Path, kind: str, name: str, *more: str, **environment: str) -> tuple[int, str]:
    """Run a bundle, to train the adapter of a name if there is one; return status and output."""
    arguments = ["run", str(folder / f"{kind}.fabric"), *more]
    if name:
        arguments += ["--train", str(folder / "data.jsonl"), "--adapter", str(folder / name)]
        arguments += ["--max-steps", str(STEPS), "--save-every", "1", "--seed", "5"]
    script = "from bitfabric.cli import main; main(ARGUMENTS)"
    if kind == "rocm":
        script = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
            "from pathlib import Path\nfrom tests.runtime.hip_tools import trained_on_standin\n"
            f"folder = Path({str(folder)!r})\n"
            "trained_on_standin(folder / 'rocm.fabric', folder / 'opencl.fabric', ARGUMENTS)"
        )
    done = subprocess.run(
        [sys.executable, "-c", f"ARGUMENTS = {arguments!r}\n{script}"],
        env={**os.environ, "FABRIC_HIP_LIB": str(folder / "libamdhip64.so"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr + done.stdout


@pytest.fixture(scope="module")
def trace(folder: Path) -> list[list[str]]:
    """Return what ran of a whole run, a line each, as words."""
    file = folder / "trace.txt"
    code, told = run(folder, "rocm", "by-rocm", STANDIN_TRACE=str(file))
    assert code == 0, told
    return [line.split() for line in file.read_text().splitlines()]


def test_it_learns_what_the_same_kernels_learn_elsewhere(
    folder: Path, trace: list[list[str]]
) -> None:
    code, told = run(folder, "opencl", "by-opencl", FABRIC_DEVICE="opencl:0")
    assert code == 0, told
    assert trace
    ours, same = (load_file(folder / name / ADAPTER) for name in ("by-rocm", "by-opencl"))
    assert ours.keys() == same.keys()
    for name, values in same.items():
        assert ours[name].tobytes() == values.tobytes(), name


def test_it_learns_what_the_processor_learns(folder: Path, trace: list[list[str]]) -> None:
    code, told = run(folder, "cpu", "by-cpu")
    assert code == 0, told
    ours, right = (load_file(folder / name / ADAPTER) for name in ("by-rocm", "by-cpu"))
    assert ours.keys() == right.keys()
    for name, values in right.items():
        scale = abs(values).max()
        assert scale > 0
        assert abs(ours[name] - values).max() <= 0.02 * scale, name


def test_every_command_was_in_order_and_every_byte_where_it_belongs(
    folder: Path, trace: list[list[str]]
) -> None:
    kinds = Counter(words[0] for words in trace)
    assert "refused" not in kinds
    # The one code object is the bundle's own, byte for byte, and is loaded once.
    assert kinds["load"] == 1
    # The weights' windows arrive whole, from what the processor's bundle maps as well.
    weights = sum(file.stat().st_size for file in (folder / "rocm.fabric" / "weights").iterdir())
    written = sum(int(words[2]) for words in trace if words[0] == "write")
    assert written > weights / 2
    names = Counter(words[1] for words in trace if words[0] == "launch")
    steps = [count for name, count in names.items() if name.startswith("adamw")]
    assert steps
    assert all(count % STEPS == 0 for count in steps)
    freed = {words[1] for words in trace if words[0] == "free"}
    for words in trace:
        if words[0] == "allocate":
            freed.discard(words[1])
    assert not freed


def test_it_writes_what_the_same_kernels_write_elsewhere(folder: Path) -> None:
    arguments = ["--prompt", "sentence number", "--max-new-tokens", "6", "--seed", "1"]
    code, ours = run(folder, "rocm", "", *arguments)
    assert code == 0, ours
    code, same = run(folder, "opencl", "", *arguments, FABRIC_DEVICE="opencl:0")
    assert code == 0, same
    # Above the text stands how long it took.
    assert ours.splitlines()[-1] == same.splitlines()[-1]


def test_a_full_device_leaves_a_sentence(folder: Path) -> None:
    code, told = run(folder, "rocm", "full", FAULT_MEMORY="1000000")
    assert code == 2, told
    assert "ROCm out of memory: device 0 (AMD Instinct MI250X) has no room for" in told
    assert "--micro-batch" in told


def test_a_lost_device_leaves_a_whole_checkpoint(folder: Path, trace: list[list[str]]) -> None:
    launches = sum(words[0] == "launch" for words in trace)
    faults = {"FAULT_LAUNCH": "719", "FAULT_LAUNCH_AFTER": str(launches * 3 // 4)}
    code, told = run(folder, "rocm", "broken", **faults)
    assert code == 2, told
    assert "ROCm device lost: Launching kernel " in told
    assert "hipErrorLaunchFailure (719)" in told
    assert "--resume" in told
    found = find_checkpoint(folder / "broken")
    assert found is not None
    assert 0 < found.progress.step < STEPS
    code, told = run(folder, "rocm", "broken", "--resume")
    assert code == 0, told
    ours, whole = (load_file(folder / name / ADAPTER) for name in ("broken", "by-rocm"))
    for name, values in whole.items():
        assert ours[name].tobytes() == values.tobytes(), name
