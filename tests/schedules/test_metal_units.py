"""Ternary products on Apple's matrices of 16-bit floats have the integers of those of bytes.

Their MSL runs on the processor, a threadgroup's threads taking turns; the same rule runs for CUDA's
units of 16-bit floats, which have another size.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from bitfabric.schedules import schedule
from bitfabric.schedules.gpu.ternary_factors import LONGEST
from bitfabric.targets import Target, get_target
from bitfabric.targets.metal import TARGETS
from tvm import tirx

from ..compiler.cuda_emulation import Emulation, missing_compiler
from ..compiler.metal.emulation import needs_compiler
from ..compiler.metal.launched import Launched
from ..compiler.metal.test_msl import faults
from .linear_reference import LinearCase
from .test_cpu_bitlinear import _close, _forward, _group
from .test_fused_bitlinear import FusedCase
from .test_gpu_matrix_units import CASES

METAL = get_target("metal")
MULTIPLY = "simdgroup_multiply_accumulate("
LONGEST_ROW = 28672
"""Columns of the widest matrix of a model of 70B."""
PACKINGS = ("2bit", "1.6bit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where kernels are compiled; what they share is, once."""
    return tmp_path_factory.mktemp("kernels")


def slow(name: str) -> ParameterSet:
    """Return a parameter of the slow runs."""
    return pytest.param(name, marks=pytest.mark.slow)


def _run(
    name: str,
    function: tirx.PrimFunc,
    inputs: list[np.ndarray],
    shape: tuple[int, ...],
    folder: Path,
) -> np.ndarray:
    """Return what a kernel writes, over NaN, once it is sure that it multiplies matrices."""
    rule, scheduled = schedule(function, METAL)
    assert rule.endswith("ternary_matrix")
    kernel = Launched(name, scheduled, METAL, folder)
    assert sum(MULTIPLY in source for source in kernel.sources.values()) == 1
    assert faults(kernel.sources) == []
    y = np.full(shape, np.nan, "float32")
    kernel(*inputs, y)
    return y


def _plain(name: str, case: LinearCase, folder: Path) -> np.ndarray:
    return _run(name, _forward(case), case.inputs, (case.tokens, case.group.rows), folder)


def _exact(case: LinearCase) -> np.ndarray:
    """Return the exact integers, times their float32 scale: two roundings, and no others."""
    absmax = np.maximum(np.abs(case.x).max(1), np.float32(1e-5))
    quantised = np.rint(case.x * (np.float32(127) / absmax)[:, None]).astype("int64")
    sums = quantised @ case.codes.T.astype("int64")
    scale = np.repeat(case.scale, case.group.outputs)
    return sums.astype("float32") * ((absmax / np.float32(127))[:, None] * scale)


@needs_compiler
@pytest.mark.parametrize("name", ["ragged", *(slow(n) for n in CASES if n != "ragged")])
def test_forward(name: str, folder: Path) -> None:
    case = CASES[name]
    _close(_plain(f"case_{list(CASES).index(name)}", case, folder), case.forward(), 1e-6)


@needs_compiler
def test_what_is_fused(folder: Path) -> None:
    case = FusedCase(64, (48,), (True,), 8, "relu2", True, True, 48, False)
    y = _run("fused", case.function(), case.arguments, case.added.shape, folder)
    error = np.abs(y - case.expected()).max(axis=1)
    # A value on the border of two integers may become either.
    step = np.abs(case.h).max(axis=1) / 127.0 * case.linear().scale.max()
    assert (error <= 1.01 * step).all()
    assert (error > 2e-6 * np.abs(case.expected()).max()).mean() <= 0.2


@needs_compiler
@pytest.mark.parametrize("packing", PACKINGS)
def test_every_bit_is_that_of_the_integers(packing: str, folder: Path) -> None:
    group = replace(_group(208, (80, 48), (False, False)), packing=packing)
    case = LinearCase(group, 67, None, 1.0, False)
    name = f"bits_{PACKINGS.index(packing)}"
    np.testing.assert_array_equal(_plain(name, case, folder), _exact(case))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS)
def test_the_largest_sums_are_exact(packing: str, folder: Path) -> None:
    """All integers 127 or -127 and all weights alike: 28,672 products of one sign."""
    group = replace(_group(LONGEST_ROW, (16,), (False,)), packing=packing)
    case = LinearCase(group, 48, None, 1.0, False)
    case.x[:] = np.where(np.arange(48) % 2, 1.0, -1.0)[:, None]
    case.x[2, 0] = 0.0
    case.codes[:] = np.where(np.arange(16) % 3, 1, -1)[:, None]
    case.codes[3, 1] = 0
    y = _plain(f"largest_{PACKINGS.index(packing)}", case, folder)
    np.testing.assert_array_equal(y, _exact(case))
    assert len(np.unique(np.abs(y[:, 1]))) == 2  # A single product less is told apart.


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_preset_multiplies_matrices(target: Target) -> None:
    """Of many tokens, of any number, and what is fused with a product."""
    fused = FusedCase(64, (48,), (True,), 8, "relu2", True, True, 48, False)
    case = CASES["whole tiles"]
    for function in (_forward(case), _forward(case, symbolic=True), fused.function()):
        assert schedule(function, target)[0].endswith("ternary_matrix")


@pytest.mark.parametrize("tokens", [1, 47])
def test_few_tokens_have_the_other_rules(tokens: int) -> None:
    case = replace(CASES["whole tiles"], tokens=tokens)
    assert schedule(_forward(case), METAL)[0].endswith("gpu.bitlinear")


def test_rows_too_long_for_exact_sums_are_no_floats() -> None:
    for columns, rule in ((LONGEST // 16 * 16, "ternary_matrix"), (LONGEST + 16, "gpu.bitlinear")):
        case = LinearCase(_group(columns // 16 * 16, (16,), (False,)), 48, None, 1.0, False)
        assert schedule(_forward(case), METAL)[0].endswith(rule)


@pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.slow
def test_units_of_another_size(packing: str) -> None:
    plain = get_target("cuda-sm80")
    units = tuple(unit for unit in plain.matrices if unit.factors == "float16")
    group = replace(_group(208, (80, 48), (False, False)), packing=packing)
    case = LinearCase(group, 67, None, 1.0, False)
    target = replace(plain, matrices=units)
    rule, scheduled = schedule(_forward(case), target)
    assert rule.endswith("ternary_matrix")
    y = np.full((case.tokens, case.group.rows), np.nan, "float32")
    Emulation(scheduled, target)(*case.inputs, y)
    np.testing.assert_array_equal(y, _exact(case))
