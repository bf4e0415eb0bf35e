"""Loops, branches and choices, and what must not be computed in vain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bitfabric.schedules.gpu.kernel import launch, registers
from bitfabric.schedules.tir import branch, when
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .programs import program, target
from .runner import both_interfaces, compute, needs_device, run


def per_thread(count: int, body: Any, x: np.ndarray, on: Any = None) -> np.ndarray:
    """Return what ``body(i, x, y)`` leaves in y, an int32 array of `count` elements."""

    def kernel(x: Any, y: Any) -> None:
        with launch([count], [1]) as (i, _):
            body(i, x, y)

    function = program([(x.size, str(x.dtype)), (count, "int32")], kernel)
    return run(function, [x, np.zeros(count, "int32")], on or target())[1]


@needs_device
@pytest.mark.parametrize("without", [(), ("int64",)], ids=["int64", "pairs"])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_loops_of_any_number_of_turns(dtype: str, without: tuple[str, ...]) -> None:
    def body(i: Any, x: Any, y: Any) -> None:
        total = registers([1], "int32")
        T.buffer_store(total, 0, [0])
        begin, count = tirx.const(2, dtype), tirx.Cast(dtype, x[i])
        with T.serial(begin, begin + count) as n, T.serial(0, 3) as m:
            T.buffer_store(total, total[0] + tirx.Cast("int32", n) * m, [0])
        T.buffer_store(y, total[0], [i])

    x = np.array([0, 1, 5, 20], "int32")
    expected = [3 * sum(range(2, 2 + n)) for n in x]
    np.testing.assert_array_equal(per_thread(4, body, x, target(*without)), expected)


@needs_device
def test_loops_while_a_condition_holds_with_jumps() -> None:
    def body(i: Any, x: Any, y: Any) -> None:
        n, total = registers([1], "int32"), registers([1], "int32")
        T.buffer_store(n, 0, [0])
        T.buffer_store(total, 0, [0])
        with T.While(n[0] < x[i]):
            T.buffer_store(n, n[0] + 1, [0])
            when(tirx.EQ(n[0] % 3, 0), lambda: T.evaluate(tirx.continue_loop()))
            when(n[0] > 10, lambda: T.evaluate(tirx.break_loop()))
            T.buffer_store(total, total[0] + n[0], [0])
        T.buffer_store(y, total[0], [i])

    x = np.array([0, 4, 10, 100], "int32")
    expected = [sum(n for n in range(1, min(limit, 10) + 1) if n % 3) for limit in x]
    np.testing.assert_array_equal(per_thread(4, body, x), expected)


@needs_device
def test_branches_and_an_early_end() -> None:
    def body(i: Any, x: Any, y: Any) -> None:
        branch(
            x[i] < 0,
            lambda: T.buffer_store(y, -1, [i]),
            lambda: branch(
                x[i] > 10, lambda: T.buffer_store(y, 1, [i]), lambda: T.buffer_store(y, 2, [i])
            ),
        )
        when(tirx.EQ(x[i], 5), lambda: T.evaluate(tirx.call_intrin("void", "tirx.thread_return")))
        T.buffer_store(y, y[i] + 100, [i])

    x = np.array([-5, 20, 3, 5], "int32")
    np.testing.assert_array_equal(per_thread(4, body, x), [99, 101, 102, 2])


@needs_device
@both_interfaces
def test_what_is_not_chosen_is_not_read(interface: Any) -> None:
    """The other side would read far outside of the buffer, where an address is no memory's."""
    far = 1 << 28

    def body(i: Any, x: Any, y: Any) -> None:
        inside = tirx.EQ(i % 2, 0)
        vector = T.decl_buffer([2], "int32x4", data=x.data)
        chosen = T.if_then_else(inside, x[i], T.if_then_else(i > 2, 7, x[i + far]))
        lanes = T.if_then_else(i < 0, vector[i + far], T.broadcast(tirx.const(3, "int32"), 4))
        held = tirx.Select(tirx.And(i < 0, x[i + far] > 0), 1, 0)
        either = tirx.Select(tirx.Or(i >= 0, x[i + far] > 0), 1, 0)
        chosen = T.if_then_else(tirx.EQ(i, 1), 11, chosen)
        T.buffer_store(y, chosen + tirx.Shuffle([lanes], [1]) + held + either, [i])

    x = np.arange(8, dtype="int32")
    np.testing.assert_array_equal(per_thread(4, body, x, interface), [4, 15, 6, 11])


@needs_device
def test_values_of_a_branch_are_computed_again_outside_of_it() -> None:
    """The same expression in a branch and after it, in both sides and in nested choices."""
    x = np.arange(-4, 4, dtype="int32")

    def body(v: Any) -> Any:
        square = v * v + 3
        left = T.if_then_else(v > 0, square * v, T.if_then_else(v < -2, square - v, square))
        return left + square * v

    expected = [
        (s * v if v > 0 else s - v if v < -2 else s) + s * v
        for v in x.tolist()
        for s in [v * v + 3]
    ]
    np.testing.assert_array_equal(compute(body, x), expected)


@needs_device
def test_a_bound_value_is_that_of_its_place() -> None:
    """A load is made where it stands, not where its value is used."""

    def body(i: Any, x: Any, y: Any) -> None:
        before = T.Bind(x[i])
        T.buffer_store(x, before + 1, [i])
        T.buffer_store(y, before * 10 + x[i], [i])

    x = np.array([1, 2, 3], "int32")
    np.testing.assert_array_equal(per_thread(3, body, x), x * 11 + 1)
