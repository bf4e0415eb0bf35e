"""Products on Hopper's warpgroups agree with exact integers and float64, emulated."""

from __future__ import annotations

import numpy as np
import pytest
from bitfabric.schedules import schedule
from bitfabric.schedules.decisions import deciding
from bitfabric.schedules.gpu import head_units
from bitfabric.targets import get_target
from tvm import tirx

from ..compiler.cuda_emulation import Emulation, missing_compiler
from .linear_reference import LinearCase
from .test_cpu_bitlinear import _backward, _close, _forward, _group
from .test_cpu_head import _arrays, _loss
from .test_cuda_units import check_head

HOPPER = get_target("cuda-sm90")
# Tokens of a work-group and parts of the depth; steps ahead; warpgroups.
PLANS = [((64, 1), 2, 1), ((64, 1), 6, 2), ((128, 1), 4, 1), ((64, 2), 2, 1)]
needs_emulation = pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())


def _run(
    function: tirx.PrimFunc, plan: tuple, tile: str, inputs: list[np.ndarray], shapes: list[tuple]
) -> list[np.ndarray]:
    """Return what a kernel laid out by a plan writes, over NaN."""
    tokens, ahead, teams = plan
    answers = {tile: tokens, f"ahead, {tile}": ahead, f"teams, {tile}": teams}
    with deciding(answers) as asked:
        _, scheduled = schedule(function, HOPPER)
    assert asked.values.items() >= answers.items()
    found = [np.full(shape, np.nan, "float32") for shape in shapes]
    Emulation(scheduled, HOPPER)(*inputs, *found)
    return found


@needs_emulation
@pytest.mark.parametrize("plan", PLANS[:3], ids=str)
def test_forward_is_exact_in_its_integers(plan: tuple) -> None:
    case = LinearCase(_group(384, (112, 48), (True, False)), 70, 3, 2.0, False)
    shapes = [(case.tokens, case.group.rows)]
    (y,) = _run(_forward(case), plan, f"tile of {case.tokens}", case.inputs, shapes)
    _close(y, case.forward(), 1e-6)


@needs_emulation
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_adjoint_has_the_bits_of_its_halves(plan: tuple) -> None:
    case = LinearCase(_group(144, (80, 176), (True, True)), 66, 4, 0.5, False)
    expected = case.backward()
    inputs, shapes = [case.dy, *case.inputs], [e.shape for e in expected]
    found = _run(_backward(case), plan, "tile", inputs, shapes)
    for actual, reference, bound in zip(found, expected, (5e-4, 2e-6, 2e-6), strict=True):
        _close(actual, reference, bound)


# Tokens, columns, rows of the table and how many tokens carry loss; tiles of either product.
HEADS = [
    ((70, 64, 333, 0.6), (64, 1), (64, 2)),
    ((130, 192, 600, 0.8), (128, 1), (128, 1)),
    ((200, 64, 256, 0.2), (64, 1), (128, 4)),
    ((64, 128, 200, 0.0), (128, 1), (64, 1)),
]


@needs_emulation
@pytest.mark.parametrize(("size", "logits", "gradient"), HEADS, ids=str)
def test_head(
    size: tuple[int, int, int, float], logits: tuple[int, int], gradient: tuple[int, int]
) -> None:
    answers = {"logits": logits, "ahead, logits": 2}, {"gradient": gradient, "ahead, gradient": 4}
    check_head(*_arrays("int8", *size), "int8", 1e-3, HOPPER, *answers)


@needs_emulation
def test_head_by_chunks_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_units, "LOGITS_BYTES", 2 * 128 * 256)
    answers = {"logits": (64, 1)}, {"gradient": (64, 1)}
    check_head(*_arrays("int8", 70, 64, 600, 0.9), "int8", 1e-3, HOPPER, *answers)


def test_parts_of_the_heads_gradient_take_bounded_memory() -> None:
    """The sums of many tokens are a sizeable buffer each, however many work-groups that gives."""
    arrays, _ = _arrays("int8", 2048, 2560, 256, 1.0)
    with deciding({}) as asked:
        schedule(_loss(arrays, True, gradient=True)[0], HOPPER)
    assert {parts for _, parts in asked.choices["gradient"].options} == {1}


@needs_emulation
def test_sure_tokens_keep_their_gradients() -> None:
    """All probabilities near one: what is left of them has bits of its own."""
    arrays, weight = _arrays("int8", 70, 64, 301, 1.0, gain=10.0)
    arrays[1] = (arrays[0] @ weight.T).argmax(1).astype("int32")
    check_head(arrays, weight, "int8", 1e-2, HOPPER, {"logits": (64, 1)})


@needs_emulation
def test_other_devices_multiply_by_the_units_of_a_subgroup() -> None:
    target = get_target("cuda-sm80")
    case = LinearCase(_group(96, (80, 48), (True, True)), 50, 2, 2.0, False)
    y = np.full((case.tokens, case.group.rows), np.nan, "float32")
    with deciding({}) as asked:
        _, scheduled = schedule(_forward(case), target)
    assert not any(name.startswith("tile of") for name in asked.values)
    Emulation(scheduled, target)(*case.inputs, y)
    _close(y, case.forward(), 1e-6)
    expected = case.backward()
    found = [np.full(e.shape, np.nan, "float32") for e in expected]
    Emulation(schedule(_backward(case), target)[1], target)(case.dy, *case.inputs, *found)
    for actual, reference, bound in zip(found, expected, (5e-4, 2e-6, 2e-6), strict=True):
        _close(actual, reference, bound)
