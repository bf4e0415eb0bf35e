"""What is predicted before compiling is what is measured after."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bitfabric.compiler import CompileOptions, LoraOptions, compile_model, estimate, pipeline
from bitfabric.compiler.calibration import Calibration
from bitfabric.models import open_model
from bitfabric.targets import get_target

SPEED = Calibration(float32=5e11, int8=2e12, read=4e10, ternary=3e10)
OPTIONS = CompileOptions(context=128)


def predicted(model: str, train: bool = True, options: CompileOptions = OPTIONS):
    return estimate(open_model(model).config, get_target("cpu"), options, train, SPEED)


@pytest.mark.parametrize("work", ["train", "decode"])
@pytest.mark.slow
def test_peak_memory_of_125m_is_at_most_what_was_predicted_and_not_much_less(
    work: str, tmp_path: Path
) -> None:
    path = compile_model(open_model("random:125M"), get_target("cpu"), OPTIONS, tmp_path / "m")
    run = subprocess.run(
        [sys.executable, "-m", "bitfabric.runtime.measure", str(path), "--work", work],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    measured = json.loads(run.stdout.splitlines()[-1])["peak_memory_mib"]
    found = predicted("random:125M", work == "train").peak_memory_mib
    assert 0.85 * found < measured <= found


def test_a_device_has_memory_and_no_time() -> None:
    config = open_model("random:125M").config
    found = estimate(config, get_target("adreno"), OPTIONS)
    assert found.step_seconds is None
    assert 70 < found.peak_memory_mib < predicted("random:125M").peak_memory_mib


def test_no_code_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an estimate generates no code")

    monkeypatch.setattr(pipeline.tvm, "compile", refuse)
    found = predicted("random:13B")
    assert found.parameters > 12e9
    assert sum(mib for _, mib in found.rows) == found.peak_memory_mib


def test_what_costs_more_is_predicted_to_cost_more() -> None:
    base = predicted("random:125M")
    larger = predicted("random:350M")
    longer = predicted("random:125M", options=replace(OPTIONS, context=256))
    higher = predicted("random:125M", options=replace(OPTIONS, lora=LoraOptions(rank=64)))
    for other in (larger, longer, higher):
        assert other.peak_memory_mib > base.peak_memory_mib
        assert other.step_seconds > base.step_seconds
    half = predicted("random:125M", options=replace(OPTIONS, head="f16"))
    assert dict(half.rows)["embedding and head"] == pytest.approx(
        2 * dict(base.rows)["embedding and head"], rel=0.01
    )


def test_what_is_computed_again_takes_time_and_what_is_kept_memory() -> None:
    ways = ("all", "wide", "feed-forward", "none")
    found = [predicted("random:125M", options=replace(OPTIONS, recompute=way)) for way in ways]
    for more, fewer in itertools.pairwise(found):
        assert more.step_seconds > fewer.step_seconds
        assert more.peak_memory_mib < fewer.peak_memory_mib
