"""Subgroups of any size, and products of bytes with and without an instruction for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bitfabric.runtime.backends import devices
from bitfabric.schedules.gpu.kernel import launch
from bitfabric.targets import FabricError
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .programs import program, target
from .runner import code, compute, needs_device, run

THREADS = 32


def per_thread(body: Any, x: np.ndarray, dtype: str) -> np.ndarray:
    """Return what ``body(x[thread])`` is in each thread of one work-group."""

    def kernel(x: Any, y: Any) -> None:
        with launch([1], [THREADS]) as (_, thread):
            T.buffer_store(y, body(x[thread]), [thread])

    function = program([(THREADS, str(x.dtype)), (THREADS, dtype)], kernel)
    return run(function, [x, np.zeros(THREADS, dtype)])[1]


def call(name: str, dtype: str, *arguments: Any) -> Any:
    """Return a call of one of our device functions."""
    return T.call_pure_extern(dtype, f"fabric_subgroup_{name}", *arguments)


@needs_device
def test_a_thread_knows_its_place() -> None:
    x = np.zeros(THREADS, "int32")
    size, count, number, lane = (
        per_thread(lambda _, n=name: call(n, "int32"), x, "int32")
        for name in ("size", "count", "id", "lane")
    )
    assert (size == size[0]).all()
    assert (count == -(-THREADS // size[0])).all()
    np.testing.assert_array_equal(np.sort(number * size[0] + lane), np.arange(THREADS))


@needs_device
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_reductions(dtype: str) -> None:
    x = (np.random.default_rng(0).integers(-50, 50, THREADS)).astype(dtype)
    size = per_thread(lambda v: call("size", "int32"), x, "int32")[0]
    rows = x.reshape(-1, size)
    for name, expected in (("add", rows.sum(1)), ("max", rows.max(1))):
        found = per_thread(lambda v, n=name: call(n, dtype, v), x, dtype)
        np.testing.assert_array_equal(found, np.repeat(expected, size))


@needs_device
def test_ballots() -> None:
    """A bit for each thread, the first one's lowest."""
    x = np.random.default_rng(0).integers(0, 2, THREADS).astype("int32")
    size = per_thread(lambda _: call("size", "int32"), x, "int32")[0]
    weights = (1 << np.arange(size)).astype("uint32")
    expected = (x.reshape(-1, size) * weights).sum(1).astype("uint32")

    def ballot(v: Any) -> Any:
        words = call("ballot", "uint32x4", v > 0)
        return tirx.Shuffle([words], [0]) | tirx.Shuffle([words], [3])

    found = per_thread(ballot, x, "uint32")
    np.testing.assert_array_equal(found, np.repeat(expected, size))
    mask = lambda _: T.call_intrin("uint32", "tirx.tvm_warp_activemask")  # noqa: E731
    assert (per_thread(mask, x, "uint32") == weights.sum()).all()


def test_a_ballot_is_of_conditions_and_asks_for_its_feature() -> None:
    def voting(value: Any) -> tirx.PrimFunc:
        def kernel(x: Any) -> None:
            with launch([1], [THREADS]) as (_, thread):
                words = call("ballot", "uint32x4", value(x[thread]))
                T.buffer_store(x, tirx.Cast("float32", tirx.Shuffle([words], [0])), [thread])

        return program([(THREADS, "float32")], kernel)

    assert "subgroupBallot" in code(voting(lambda v: v > 0)).features
    with pytest.raises(FabricError, match="fabric_subgroup_ballot of float32"):
        code(voting(lambda v: v))


@needs_device
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64", "bfloat16"])
def test_shuffles_stay_within_their_width(dtype: str) -> None:
    """As CUDA's do; a thread whose partner is outside keeps its own value."""
    x, width = np.arange(THREADS).astype(dtype), 4
    size = int(devices("vulkan")[0]["subgroup_size"])
    lane = np.arange(THREADS)
    begin = lane // width * width
    expected = {
        "tvm_warp_shuffle": begin + 1,
        "tvm_warp_shuffle_up": np.where(lane - 1 < begin, lane, lane - 1),
        "tvm_warp_shuffle_down": np.where(lane + 1 >= begin + width, lane, lane + 1),
        "tvm_warp_shuffle_xor": lane ^ 1,
    }
    for name, source in expected.items():

        def body(v: Any, name: str = name) -> Any:
            mask = T.call_intrin("uint32", "tirx.tvm_warp_activemask")
            return T.call_intrin(dtype, f"tirx.{name}", mask, v, 1, width, size)

        np.testing.assert_array_equal(per_thread(body, x, dtype), x[source], err_msg=name)


def test_shuffles_ask_for_the_subgroups_they_were_written_for() -> None:
    def kernel(x: Any) -> None:
        with launch([1], [THREADS]) as (_, thread):
            other = T.call_intrin("float32", "tirx.tvm_warp_shuffle", 1, x[thread], 0, 16, 16)
            T.buffer_store(x, other, [thread])

    kernel_code = code(program([(THREADS, "float32")], kernel))
    assert kernel_code.subgroup_size == 16
    assert {"subgroupShuffle", "subgroupSizeControl"} <= set(kernel_code.features)


@needs_device
@pytest.mark.parametrize("instruction", [True, False], ids=["instruction", "expanded"])
def test_products_of_four_bytes(instruction: bool) -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(-128, 128, (2, 64, 4), "int8")
    c = random.integers(-1000, 1000, 64, "int32")
    on = target(supports_integer_dot_product=instruction)

    def body(x: Any, y: Any, z: Any) -> Any:
        return T.call_pure_extern("int32", "fabric_dot4", x, y, z)

    words = [v.view("int32").ravel() for v in (a, b)]
    found = compute([body, tirx.dp4a], *words, c, on=on)
    expected = (a.astype("int32") * b).sum(1) + c
    np.testing.assert_array_equal(found, [expected, expected])


def test_the_instruction_is_asked_for_only_where_it_is_used() -> None:
    def kernel(x: Any) -> None:
        with launch([1], [1]) as (i, _):
            T.buffer_store(x, T.call_pure_extern("int32", "fabric_dot4", x[0], x[1], x[2]), [i])

    function = program([(4, "int32")], kernel)
    with_it = code(function, target(supports_integer_dot_product=True)).features
    assert "shaderIntegerDotProduct" in with_it
    assert "shaderIntegerDotProduct" not in code(function, target()).features
