"""Loads and stores: vectors over scalars and the other way, in every memory, by both interfaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.compiler.spirv.interface import Access
from bitfabric.schedules.gpu.kernel import barrier, launch, registers, shared
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .programs import program, target
from .runner import both_interfaces, code, needs_device, run

COUNT = 48


def numbers(dtype: str, count: int = COUNT) -> np.ndarray:
    """Return numbers that tell their places apart."""
    return (np.arange(count) % 100 + 1).astype(dtype)


@needs_device
@both_interfaces
@pytest.mark.parametrize("lanes", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("dtype", ["float32", "int8", "float16"])
def test_buffers_of_vectors(interface: tvm.target.Target, lanes: int, dtype: str) -> None:
    def kernel(x: Any, y: Any) -> None:
        source = T.decl_buffer([COUNT // lanes], f"{dtype}x{lanes}", data=x.data)
        sink = T.decl_buffer([COUNT // lanes], f"{dtype}x{lanes}", data=y.data)
        with launch([COUNT // lanes], [1]) as (i, _):
            T.buffer_store(sink, source[COUNT // lanes - 1 - i], [i])

    x = numbers(dtype)
    found = run(program([(COUNT, dtype)] * 2, kernel), [x, np.zeros_like(x)], interface)[1]
    np.testing.assert_array_equal(found, x.reshape(-1, lanes)[::-1].ravel())


@needs_device
@both_interfaces
@pytest.mark.parametrize("begin", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_vectors_of_places(interface: tvm.target.Target, begin: int, stride: int) -> None:
    """Adjacent elements that begin at a multiple of their number are moved at once."""

    def kernel(x: Any, y: Any) -> None:
        with launch([2], [1]) as (i, _):
            place = tirx.Ramp(i * 16 + begin, stride, 8)
            T.buffer_store(y, x[place] + x[place], [tirx.Ramp(i * 16 + begin, stride, 8)])

    x = numbers("float32")
    expected = np.zeros_like(x)
    for i in range(2):
        places = i * 16 + begin + stride * np.arange(8)
        expected[places] = 2 * x[places]
    found = run(program([(COUNT, "float32")] * 2, kernel), [x, np.zeros_like(x)], interface)[1]
    np.testing.assert_array_equal(found, expected)


@needs_device
@pytest.mark.parametrize(
    "dtype", ["bool", "int16", "uint8", "float16", "int64", "float64", "int32"]
)
@pytest.mark.parametrize("without", [(), ("int8", "int16")], ids=["narrow", "words"])
@pytest.mark.parametrize("memory", [shared, registers], ids=["shared", "registers"])
def test_arrays_of_every_type(dtype: str, without: tuple[str, ...], memory: Any) -> None:
    def kernel(x: Any, y: Any) -> None:
        with launch([1], [8]) as (_, i):
            held = memory([8], dtype)
            for n in range(8) if memory is registers else [i]:
                T.buffer_store(held, x[n], [n])
            barrier()
            T.buffer_store(y, held[7 - i], [i])

    x = numbers(dtype, 8) if dtype != "bool" else np.arange(8) % 3 == 0
    found = run(program([(8, dtype)] * 2, kernel), [x, np.zeros_like(x)], target(*without))[1]
    np.testing.assert_array_equal(found, x[::-1])


@needs_device
@pytest.mark.parametrize("memory", [shared, registers], ids=["shared", "registers"])
@pytest.mark.parametrize(
    ("kept", "seen"),
    [
        ("float32x4", "float32"),
        ("float32", "float32x4"),
        ("float32x4", "int32"),
        ("int32x4", "float32x2"),
    ],
)
def test_arrays_seen_as_elements_of_another_type(memory: Any, kept: str, seen: str) -> None:
    count = {name: 16 // tvm.DataType(name).lanes for name in (kept, seen)}

    def kernel(x: Any, y: Any) -> None:
        with launch([1], [1]):
            held = memory([count[kept]], kept)
            view = T.decl_buffer([count[seen]], seen, data=held.data, scope=held.scope())
            source = T.decl_buffer([count[kept]], kept, data=x.data)
            sink = T.decl_buffer([count[seen]], seen, data=y.data)
            for n in range(count[kept]):
                T.buffer_store(held, source[n], [n])
            for n in range(count[seen]):
                T.buffer_store(sink, view[n], [count[seen] - 1 - n])

    x = numbers(kept.split("x")[0], 16)
    kinds = [(16, name.split("x")[0]) for name in (kept, seen)]
    found = run(program(kinds, kernel), [x, np.zeros(16, kinds[1][1])])[1]
    expected = x.view(kinds[1][1]).reshape(count[seen], -1)[::-1].ravel()
    np.testing.assert_array_equal(found, expected)


@needs_device
def test_threads_see_what_others_wrote_before_a_barrier() -> None:
    def kernel(x: Any, y: Any) -> None:
        with launch([4], [64]) as (group, thread):
            first, second = shared([64], "float32"), shared([64], "int32")
            T.buffer_store(first, x[group * 64 + thread], [thread])
            T.buffer_store(second, thread, [thread])
            barrier()
            other = 63 - thread
            T.buffer_store(
                y, first[other] + tirx.Cast("float32", second[other]), [group * 64 + thread]
            )

    x = np.arange(256, dtype="float32")
    found = run(program([(256, "float32")] * 2, kernel), [x, np.zeros_like(x)])[1]
    expected = (x.reshape(4, 64) + np.arange(64))[:, ::-1].ravel()
    np.testing.assert_array_equal(found, expected)


@needs_device
@both_interfaces
def test_additions_that_no_other_thread_interrupts(interface: tvm.target.Target) -> None:
    def kernel(x: Any, y: Any) -> None:
        with launch([8], [32]) as (group, thread):
            place = T.address_of(y[thread % 4])
            T.evaluate(T.call_intrin("int32", "tirx.atomic_add", place, x[group * 32 + thread]))

    x = np.arange(256, dtype="int32")
    found = run(
        program([(256, "int32"), (4, "int32")], kernel), [x, np.zeros(4, "int32")], interface
    )
    np.testing.assert_array_equal(found[1], x.reshape(-1, 4).sum(0))


def test_access_is_what_the_code_does() -> None:
    def kernel(read: Any, written: Any, both: Any) -> None:
        with launch([1], [1]) as (i, _):
            T.buffer_store(written, read[i], [i])
            T.buffer_store(both, both[i] + 1, [i])

    kinds = code(program([(1, "int32")] * 3, kernel)).arguments
    assert [kind.access for kind in kinds] == [
        Access.READ,
        Access.WRITE,
        Access.READ | Access.WRITE,
    ]
