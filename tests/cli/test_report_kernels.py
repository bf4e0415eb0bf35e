"""Every kernel of a bundle on its device, beside the processor's numbers: right ones and wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitfabric.cli.kernel_probe import LIST, write_expected
from bitfabric.cli.report_kernels import kernel_lines, tried
from bitfabric.compiler.kernel_check import kernel_checks
from bitfabric.targets import get_target

from ..devices import needs
from ..parity.conftest import Compiled, compile_tiny

pytestmark = [*needs("opencl"), pytest.mark.slow]
SECONDS = 300
CASE = {"config": {"num_layers": 1, "vocab_size": 512}}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Return a model of one layer for OpenCL."""
    folder = tmp_path_factory.mktemp("kernels")
    return compile_tiny(folder, CASE, target="opencl", head="int8")


@pytest.fixture(scope="module")
def expected(compiled: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what its kernels must give."""
    folder = tmp_path_factory.mktemp("expected")
    options = compiled.options
    write_expected(folder, kernel_checks(compiled.model.config, get_target("opencl"), options))
    return folder


@pytest.fixture(scope="module")
def found(compiled: Compiled, expected: Path) -> list[dict[str, Any]]:
    """Return what became of each kernel."""
    environment = {**os.environ, "FABRIC_DEVICE": "opencl:0"}
    return tried(compiled.bundle.path, expected, environment, SECONDS)


def test_every_kernel_of_the_bundle_is_tried_and_right(
    compiled: Compiled, found: list[dict[str, Any]]
) -> None:
    assert {each["name"] for each in found} == set(compiled.bundle.manifest["kernels"])
    assert all(each["passed"] for each in found), found
    # Floats of 32 bits in another order: nothing here is off by more than their rounding.
    assert max(float(each["error"]) for each in found) < 1e-5
    assert kernel_lines(found) == [f"{len(found)} of {len(found)} kernels give the right numbers"]


def test_a_kernel_that_is_wrong_is_named(
    compiled: Compiled, expected: Path, found: list[dict[str, Any]]
) -> None:
    names = [check["name"] for check in json.loads((expected / LIST).read_text())]
    file = expected / f"{names.index('attention_kernel')}.npz"
    whole = file.read_bytes()
    with np.load(file) as results:
        (place,) = results
        np.savez(file, **{place: results[place] * 1.02})
    environment = {**os.environ, "FABRIC_DEVICE": "opencl:0"}
    try:
        wrong = tried(compiled.bundle.path, expected, environment, SECONDS)
    finally:
        file.write_bytes(whole)
    assert [each["name"] for each in wrong if not each["passed"]] == ["attention_kernel"]
    first, second = kernel_lines(wrong)
    assert first == f"{len(found) - 1} of {len(found)} kernels give the right numbers"
    assert second.startswith("attention_kernel: off by 1.96e-02 in 12x128 -> 12x64")


def test_a_process_that_ends_early_is_told(tmp_path: Path) -> None:
    (end,) = tried(tmp_path / "no.fabric", tmp_path, os.environ, SECONDS)
    assert end["passed"] is False
    assert "ended with status 1" in end["error"]
    (_, said) = kernel_lines([end])
    assert said.startswith("the process of the kernels: ended with status 1")
