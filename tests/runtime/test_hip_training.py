"""Training through the HIP backend, on a library that runs its launches on the OpenCL device.

The library is as lazy as ROCm's may be, so the adapter comes out right only if every copy, every
argument, extent and lifetime is. What is launched, on which bytes, is compared with the processor's
own run of the same kernels, launch by launch.
"""

from __future__ import annotations

import shutil
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from bitfabric.runtime.checkpoint import find_checkpoint
from safetensors.numpy import load_file

from ..devices import missing
from .hip_bundles import LAYERS, PLAN, STEPS, STREAMED, compile_bundles, run
from .launch_trace import differences, read_trace

pytestmark = [
    pytest.mark.skipif(bool(missing("opencl")), reason=missing("opencl")),
    pytest.mark.slow,  # the emulated device takes minutes; CI runs it apart
]
ADAPTER = "adapter_model.safetensors"
WRITING = ["--prompt", "sentence number", "--max-new-tokens", "6", "--seed", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the library, the data and a tiny model for each way."""
    place = tmp_path_factory.mktemp("hip")
    compile_bundles(place)
    return place


@pytest.fixture(scope="module")
def trace(folder: Path) -> list[list[str]]:
    """Return what ran of a whole run, a line each, as words."""
    file = folder / "trace.txt"
    code, told = run(folder, PLAN, "by-plan", plan="training")
    assert code == 0, told
    code, told = run(folder, "rocm", "by-rocm", plan="training", STANDIN_TRACE=str(file))
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
    freed = {words[1] for words in trace if words[0] == "free"}
    for words in trace:
        if words[0] == "allocate":
            freed.discard(words[1])
    assert not freed


def test_training_launches_what_the_processors_run_implies(
    folder: Path, trace: list[list[str]]
) -> None:
    plan, found = read_trace(folder / "training")
    assert sum(words[0] == "launch" for words in trace) == len(plan)
    assert Counter(launch["kernel"] for launch in plan)["adamw_kernel"] == STEPS * LAYERS
    assert differences(plan, found) == []


@pytest.mark.parametrize(
    ("subfolder", "streamed", "name"),
    [
        ("writing", "", ""),
        ("streamed-writing", STREAMED, ""),
        pytest.param("streaming", STREAMED, "by-layer", marks=pytest.mark.slow),
    ],
)
def test_writing_and_streaming_launch_what_the_processors_run_implies(
    folder: Path, subfolder: str, streamed: str, name: str
) -> None:
    for kind in (PLAN, "rocm"):
        each = f"{name}-{kind}" if name else ""
        arguments = [] if name else WRITING
        code, told = run(folder, kind + streamed, each, *arguments, plan=subfolder)
        assert code == 0, told
    plan, found = read_trace(folder / subfolder)
    assert len(plan) > 100
    assert differences(plan, found) == []


def test_what_is_not_as_planned_is_told(folder: Path, trace: list[list[str]]) -> None:
    plan, found = read_trace(folder / "training")
    plan, found = plan[:40], found[:40]
    assert differences(plan, found) == []
    assert "39 launches where 40 are planned" in differences(plan, found[:-1])[0]
    at = next(i for i, each in enumerate(found) if isinstance(each["arguments"][1], dict))

    def altered(**changes: Any) -> list[str]:
        other = deepcopy(found)
        place = other[at]["arguments"][1]
        for part, value in changes.items():
            (place if part in place else other[at])[part] = value
        return differences(plan, other)

    size = plan[at]["arguments"][1]["size"]
    first = found[at]["arguments"][0]
    assert any("its kernel is other" in each for each in altered(kernel="other"))
    assert any("its extents is" in each for each in altered(extents={"blockIdx.x": 9}))
    assert any("its arguments are" in each for each in altered(packed="00"))
    assert any(f"bytes, not {size}" in each for each in altered(room=size - 1))
    assert any("other bytes before" in each for each in altered(before="0"))
    assert any("other bytes after" in each for each in altered(after="0"))
    assert any("share memory" in each for each in altered(place=first["place"]))


def test_it_writes_what_the_same_kernels_write_elsewhere(folder: Path) -> None:
    code, ours = run(folder, "rocm", "", *WRITING)
    assert code == 0, ours
    code, same = run(folder, "opencl", "", *WRITING, FABRIC_DEVICE="opencl:0")
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
    # The processor takes the same checkpoint up where the device lost it.
    shutil.copytree(folder / "broken", folder / "broken-plan")
    for kind, name in ((PLAN, "broken-plan"), ("rocm", "broken")):
        code, told = run(folder, kind, name, "--resume", plan="resume")
        assert code == 0, told
    assert differences(*read_trace(folder / "resume")) == []
    ours, whole = (load_file(folder / name / ADAPTER) for name in ("broken", "by-rocm"))
    for name, values in whole.items():
        assert ours[name].tobytes() == values.tobytes(), name
