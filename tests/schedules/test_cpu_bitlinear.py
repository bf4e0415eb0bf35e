"""The ternary product and its adjoint agree with exact integers and float64, on every processor."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.models.kernels import LinearGroup, bitlinear
from bitfabric.models.kernels.bitlinear_vjp import bitlinear_vjp
from bitfabric.models.packing import PACKINGS, packed_shape
from bitfabric.schedules import schedule
from bitfabric.targets import Target
from bitfabric.targets.cpu import TARGETS
from tvm import relax, tirx

from .kernel_harness import compiled, compiles_for_arm, every_target, prim_func, run
from .linear_reference import LinearCase

F32 = "float32"


def _group(inputs: int, outputs: tuple[int, ...], adapted: tuple[bool, ...]) -> LinearGroup:
    return LinearGroup("group", ("q", "k", "v")[: len(outputs)], inputs, outputs, adapted)


def _types(case: LinearCase, tokens: Any, rank: Any) -> list[tuple[tuple[Any, ...], str]]:
    group = case.group
    types = [
        ((tokens, group.inputs), F32),
        (packed_shape(group.rows, group.inputs, PACKINGS[group.packing]), "int32"),
        ((len(group.outputs),), F32),
    ]
    if case.rank is not None:
        types += [((group.adapters, rank, group.inputs), F32), ((rank, group.adapted_rows), F32)]
        types += [((tokens, group.inputs), F32)] if case.separate else []
    return types


def _forward(case: LinearCase, symbolic: bool = False) -> tirx.PrimFunc:
    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        lora = (v[3], v[4]) if len(v) > 3 else None
        lora_input = v[5] if len(v) > 5 else None
        return bitlinear(bb, *v[:3], case.group, lora, case.lora_scale, lora_input)

    tokens = tirx.Var("n", "int64") if symbolic else case.tokens
    rank = tirx.Var("r", "int64") if symbolic else case.rank
    return prim_func("bitlinear", emit, _types(case, tokens, rank))


def _backward(case: LinearCase) -> tirx.PrimFunc:
    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        parameters = case.group.parameters(case.lora_scale)
        return bitlinear_vjp(bb, *v[:4], parameters, tuple(v[4:]))

    types = [((case.tokens, case.group.rows), F32), *_types(case, case.tokens, case.rank)]
    return prim_func("bitlinear_vjp", emit, types)


def _close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


CASES = {
    "one projection": LinearCase(_group(48, (48,), (False,)), 5, None, 1.0, False),
    "one token": LinearCase(_group(96, (64, 16, 16), (True,) * 3), 1, 8, 2.0, False),
    "a projection without adapter": LinearCase(
        _group(48, (32, 16, 16), (True, False, True)), 13, 5, 1.5, False
    ),
    "only the last adapted": LinearCase(_group(64, (16, 48), (False, True)), 4, 3, 0.5, False),
    "dropout": LinearCase(_group(96, (160, 48, 16), (True,) * 3), 14, 8, 2.0, True),
    "threads": LinearCase(_group(768, (384, 112), (True, True)), 37, 16, 2.0, False),
}
every_case = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


@every_target
@every_case
def test_forward(target: Target, case: LinearCase) -> None:
    (y,) = run(_forward(case), target, case.inputs, [(case.tokens, case.group.rows)])
    expected = case.forward()
    if case.rank is None:
        # Two float32 roundings of an exact integer.
        np.testing.assert_allclose(y, expected, rtol=2.5e-7, atol=0)
    _close(y, expected, 1e-6)


@every_target
def test_forward_of_any_token_count_and_rank(target: Target) -> None:
    group = _group(96, (32, 48, 16), (True, False, True))
    kernel = compiled(_forward(LinearCase(group, 1, 1, 2.0, False), symbolic=True), target)
    for tokens, rank in itertools.product((1, 3, 6, 7, 20), (0, 1, 8, 13)):
        case = LinearCase(group, tokens, rank, 2.0, False)
        tensors = [tvm.runtime.tensor(array) for array in case.inputs]
        y = tvm.runtime.tensor(np.full((tokens, group.rows), np.nan, F32))
        kernel(*tensors, y)
        _close(y.numpy(), case.forward(), 1e-6)


@every_target
@every_case
def test_backward(target: Target, case: LinearCase) -> None:
    expected = case.backward()
    shapes = [e.shape for e in expected]
    found = run(_backward(case), target, [case.dy, *case.inputs], shapes)
    for actual, reference in zip(found, expected, strict=True):
        _close(actual, reference, 2e-6)


@every_target
def test_the_rules_keep_the_meaning_of_the_kernels(target: Target) -> None:
    case = CASES["dropout"]
    shapes = [e.shape for e in case.backward()]
    for function, inputs, outputs in (
        (_forward(case), case.inputs, [(case.tokens, case.group.rows)]),
        (_backward(case), [case.dy, *case.inputs], shapes),
    ):
        plain = run(function, target, inputs, outputs, plain=True)
        for a, b in zip(run(function, target, inputs, outputs), plain, strict=True):
            _close(a, b, 2e-6)


@every_target
def test_extreme_tokens(target: Target) -> None:
    case = LinearCase(_group(64, (32,), (False,)), 6, None, 1.0, False)
    case.x[0] = 0.0
    case.x[1] = 1e-7
    case.x[2] = np.where(np.arange(64) % 2, 3.0, -3.0)
    case.x[3] = np.arange(64) - 31.5  # halves after scaling: ties go to even
    case.x[4] *= 1e20
    case.codes[:] = 1
    (y,) = run(_forward(case), target, case.inputs, [(6, 32)])
    np.testing.assert_allclose(y, case.forward(), rtol=2.5e-7, atol=0)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_rules_are_chosen(target: Target) -> None:
    case = CASES["dropout"]
    assert schedule(_forward(case), target)[0].endswith("cpu.bitlinear")
    assert schedule(_backward(case), target)[0].endswith("cpu.bitlinear_vjp")


def test_code_for_arm() -> None:
    case = CASES["a projection without adapter"]
    assert compiles_for_arm(_forward(case))
    assert compiles_for_arm(_forward(case, symbolic=True))
    assert compiles_for_arm(_backward(case))
