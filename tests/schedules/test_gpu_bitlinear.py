"""The ternary product on graphics processors agrees with exact integers and float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tvm
from bitfabric.models.kernels import bitlinear
from bitfabric.schedules import schedule
from bitfabric.schedules.gpu import ternary_tile
from bitfabric.schedules.gpu.ternary_tile import WIDE, Tile
from bitfabric.targets import Target
from bitfabric.targets.opencl import MALI, NVIDIA, OPENCL
from tvm import tirx

from .kernel_harness import compiled, every_gpu, layouts, prim_func, run
from .linear_reference import LinearCase
from .test_cpu_bitlinear import _close, _forward, _group, _types

F32 = "float32"

CASES = {
    "one projection": LinearCase(_group(48, (48,), (False,)), 5, None, 1.0, False),
    "one token": LinearCase(_group(96, (64, 16, 16), (True,) * 3), 1, 8, 2.0, False),
    "a projection without adapter": LinearCase(
        _group(48, (32, 16, 16), (True, False, True)), 13, 5, 1.5, False
    ),
    "only the last adapted": LinearCase(_group(64, (16, 48), (False, True)), 4, 3, 0.5, False),
    "dropout": LinearCase(_group(96, (160, 48, 16), (True,) * 3), 14, 8, 2.0, True),
    "many rows": LinearCase(_group(400, (1040, 112), (True, True)), 37, 17, 2.0, False),
    "one token of odd width": LinearCase(
        _group(1104, (32, 64, 96), (True, False, True)), 1, 3, 0.5, False
    ),
    "one token, large adapters": LinearCase(_group(96, (64, 16), (True,) * 2), 1, 40, 2.0, False),
    "one token with dropout": LinearCase(_group(96, (64,), (True,)), 1, 8, 2.0, True),
    "few tokens": LinearCase(_group(4688, (64, 96), (True, True)), 3, 9, 1.0, False),
    "many tokens": LinearCase(_group(80, (272,), (True,)), 1030, 4, 2.0, False),
}
every_layout = layouts(OPENCL, NVIDIA, MALI)
every_case = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


@every_layout
@every_case
def test_forward(target: Target, case: LinearCase) -> None:
    (y,) = run(_forward(case), target, case.inputs, [(case.tokens, case.group.rows)])
    expected = case.forward()
    if case.rank is None:
        # Two float32 roundings of an exact integer.
        np.testing.assert_allclose(y, expected, rtol=2.5e-7, atol=0)
    _close(y, expected, 1e-6)


@every_layout
def test_forward_of_any_token_count_and_rank(target: Target) -> None:
    group = _group(96, (32, 48, 16), (True, False, True))
    kernel = compiled(_forward(LinearCase(group, 1, 1, 2.0, False), symbolic=True), target)
    device = tvm.runtime.device(target.device, 0)
    for tokens, rank in itertools.product((1, 3, 16, 21), (1, 8, 13)):
        case = LinearCase(group, tokens, rank, 2.0, False)
        tensors = [tvm.runtime.tensor(array, device) for array in case.inputs]
        y = tvm.runtime.tensor(np.full((tokens, group.rows), np.nan, F32), device)
        kernel(*tensors, y)
        _close(y.numpy(), case.forward(), 1e-6)


@every_gpu
@pytest.mark.parametrize("tile", WIDE, ids=str)
def test_every_tile(target: Target, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ternary_tile, "WIDE", (tile,))
    case = LinearCase(_group(400, (304, 16), (True, False)), 70, 5, 2.0, False)
    (y,) = run(_forward(case), target, case.inputs, [(case.tokens, case.group.rows)])
    _close(y, case.forward(), 1e-6)


@every_gpu
def test_one_token_of_any_rank(target: Target) -> None:
    """The rank decides at run time how many launches there are."""
    group = _group(112, (64, 32), (True, True))
    types = _types(LinearCase(group, 1, 1, 1.0, False), 1, tirx.Var("r", "int64"))
    function = prim_func(
        "bitlinear", lambda bb, *v: bitlinear(bb, *v[:3], group, (v[3], v[4]), 1.0), types
    )
    for rank in (1, 2, 7, 33, 200):
        case = LinearCase(group, 1, rank, 1.0, False)
        (y,) = run(function, target, case.inputs, [(1, group.rows)])
        _close(y, case.forward(), 1e-6)


@every_gpu
@pytest.mark.parametrize("tokens", [1, 6])
def test_extreme_tokens(target: Target, tokens: int) -> None:
    for first in range(0, 6, tokens):
        case = LinearCase(_group(64, (32,), (False,)), 6, None, 1.0, False)
        case.x[0] = 0.0
        case.x[1] = 1e-7
        case.x[2] = np.where(np.arange(64) % 2, 3.0, -3.0)
        case.x[3] = np.arange(64) - 31.5  # halves after scaling: ties go to even
        case.x[4] *= 1e20
        case.x, case.tokens = case.x[first : first + tokens], tokens
        case.codes[:] = 1
        (y,) = run(_forward(case), target, case.inputs, [(tokens, 32)])
        np.testing.assert_allclose(y, case.forward(), rtol=2.5e-7, atol=0)


def test_the_rules_are_chosen() -> None:
    assert schedule(_forward(CASES["dropout"]), OPENCL)[0].endswith("gpu.bitlinear")
