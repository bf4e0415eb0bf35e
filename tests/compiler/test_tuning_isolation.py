"""A candidate may crash, hang or compute wrong numbers: the tuner goes on, with another worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from bitfabric.compiler.tuning.measure import Failed, Measured, Measurer
from bitfabric.targets import FabricError, host_cpu
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

SIZE = 64
ARGUMENTS = [
    {"dtype": "float32", "shape": [SIZE], "fill": ["normal", 1.0]},
    {"dtype": "float32", "shape": [SIZE], "fill": ["normal", 1.0]},
]


def kernel(value: Callable, *before: Callable[[], None]) -> tirx.PrimFunc:
    """Return ``y[i] = value(x[i])`` that does something else first."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        x, y = (T.arg(name, T.buffer((SIZE,), "float32")) for name in "xy")
        for statement in before:
            statement()
        with T.serial(0, SIZE) as i:
            T.buffer_store(y, value(x[i]), [i])
    return builder.get()


def calls(name: str, *arguments: int) -> Callable[[], None]:
    """Return what emits a call of a C function."""
    return lambda: T.evaluate(T.call_extern("int32", name, *arguments))


def twice(x):
    return x + x


@pytest.fixture(scope="module")
def measurer() -> Iterator[Measurer]:
    """A worker that has taken a kernel which doubles."""
    with Measurer(host_cpu(), limit=5.0) as started:
        seconds = started.take_function(kernel(twice), ARGUMENTS, "doubling")
        assert 0 < seconds < 0.1
        yield started


def test_a_right_candidate_is_timed(measurer: Measurer) -> None:
    found = measurer.compare(kernel(lambda x: x * T.float32(2)))
    assert isinstance(found, Measured)
    assert 0 < found.seconds < 0.1
    assert found.low <= found.ratio <= found.high


@pytest.mark.parametrize(
    ("candidate", "kind", "why"),
    [
        (kernel(twice, calls("abort")), "crash", "SIGABRT"),
        pytest.param(
            kernel(twice, calls("exit", 7)), "crash", "exit status 7", marks=pytest.mark.slow
        ),
        (kernel(twice, calls("sleep", 60)), "hang", "5 s"),
        (kernel(lambda x: x * T.float32(2.01)), "wrong numbers", "argument 1 is off by 0.005"),
        (kernel(lambda x: T.sqrt(x - T.float32(9))), "wrong numbers", "not finite"),
        pytest.param(
            kernel(twice, calls("there_is_no_such_function")), "build", "", marks=pytest.mark.slow
        ),
    ],
    ids=["crash", "exit", "hang", "wrong", "infinite", "build"],
)
def test_a_bad_candidate_is_named_and_the_next_one_measured(
    measurer: Measurer, candidate: tirx.PrimFunc, kind: str, why: str
) -> None:
    found = measurer.compare(candidate)
    assert isinstance(found, Failed), found
    assert found.kind == kind or (kind == "build" and found.kind == "crash")
    assert why in found.why
    assert isinstance(measurer.compare(kernel(twice)), Measured)


def test_a_default_that_fails_is_no_candidate_but_an_error() -> None:
    with Measurer(host_cpu(), limit=5.0) as measurer, pytest.raises(FabricError, match="by its"):
        measurer.take_function(kernel(twice, calls("abort")), ARGUMENTS, "doubling")


def test_a_worker_that_can_not_start_is_an_error() -> None:
    with Measurer(host_cpu(), program=["false"]) as measurer, pytest.raises(FabricError):
        measurer.take_function(kernel(twice), ARGUMENTS, "doubling")
