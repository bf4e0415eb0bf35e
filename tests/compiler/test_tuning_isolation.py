"""A candidate may crash, hang or compute wrong numbers: the tuner goes on, with another worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from bitfabric.compiler.tuning.measure import Failed, Measured, Measurer
from bitfabric.targets import FabricError, host_cpu
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from ..runtime.remote_tools import Device

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


@pytest.fixture(scope="module", params=["here", "elsewhere"])
def measurer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Measurer]:
    """A worker that has taken a kernel which doubles, on this machine or by a device served."""
    with ExitStack() as stack:
        address = None
        if request.param == "elsewhere":
            if os.name != "posix":
                pytest.skip("serving needs Android, Linux or macOS")
            device = stack.enter_context(Device(tmp_path_factory.mktemp("store")))
            address = f"rpc://127.0.0.1:{device.port}/{device.key}"
        started = stack.enter_context(Measurer(host_cpu(), limit=5.0, device=address))
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
        (kernel(twice, calls("abort")), "crash", ("SIGABRT", "closed the connection")),
        pytest.param(
            kernel(twice, calls("exit", 7)),
            "crash",
            ("exit status 7", "closed the connection"),
            marks=pytest.mark.slow,
        ),
        (kernel(twice, calls("sleep", 60)), "hang", ("5 s",)),
        (kernel(lambda x: x * T.float32(2.01)), "wrong numbers", ("argument 1 is off by 0.005",)),
        (kernel(lambda x: T.sqrt(x - T.float32(9))), "wrong numbers", ("not finite",)),
        pytest.param(
            kernel(twice, calls("there_is_no_such_function")),
            "build",
            ("",),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["crash", "exit", "hang", "wrong", "infinite", "build"],
)
def test_a_bad_candidate_is_named_and_the_next_one_measured(
    measurer: Measurer, candidate: tirx.PrimFunc, kind: str, why: tuple[str, ...]
) -> None:
    found = measurer.compare(candidate)
    assert isinstance(found, Failed), found
    assert found.kind == kind or (kind == "build" and found.kind == "crash")
    assert any(words in found.why for words in why), found
    assert isinstance(measurer.compare(kernel(twice)), Measured)


def test_a_default_that_fails_is_no_candidate_but_an_error() -> None:
    with Measurer(host_cpu(), limit=5.0) as measurer, pytest.raises(FabricError, match="by its"):
        measurer.take_function(kernel(twice, calls("abort")), ARGUMENTS, "doubling")


def test_a_worker_that_can_not_start_is_an_error() -> None:
    with Measurer(host_cpu(), program=["false"]) as measurer, pytest.raises(FabricError):
        measurer.take_function(kernel(twice), ARGUMENTS, "doubling")
