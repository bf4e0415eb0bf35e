"""What a launch gives a kernel: indices, scalars, buffers, and their block where it is large."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tvm
from bitfabric.schedules.gpu.kernel import launch
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .programs import ADDRESSES, DESCRIPTORS, program, target
from .runner import both_interfaces, code, disassembled, needs_device, run

SCALARS = {
    "int8": -5,
    "uint8": 250,
    "int16": -300,
    "uint16": 65000,
    "int32": -(2**30),
    "uint32": 2**31 + 5,
    "int64": -(2**40) - 3,
    "float32": 0.375,
    "bool": True,
}


@needs_device
@both_interfaces
def test_indices_along_every_axis(interface: tvm.target.Target) -> None:
    grid, block = (3, 2, 4), (4, 2, 2)

    def kernel(y: Any) -> None:
        with launch(grid, block) as (bx, by, bz, tx, ty, tz):
            place = ((((bz * 2 + by) * 3 + bx) * 2 + tz) * 2 + ty) * 4 + tx
            number = tx + 10 * ty + 100 * tz + 1000 * bx + 10000 * by + 100000 * bz
            T.buffer_store(y, number, [place])

    count = int(np.prod(grid) * np.prod(block))
    found = run(program([(count, "int32")], kernel), [np.zeros(count, "int32")], interface)[0]
    bz, by, bx, tz, ty, tx = np.indices((*grid[::-1], *block[::-1])).reshape(6, -1)
    np.testing.assert_array_equal(
        found, tx + 10 * ty + 100 * tz + 1000 * bx + 10000 * by + 100000 * bz
    )


@needs_device
@both_interfaces
@pytest.mark.parametrize("grid", [(70000, 1), (3, 70000)], ids=str)
def test_grids_beyond_what_a_device_launches_are_folded(
    interface: tvm.target.Target, grid: tuple[int, int]
) -> None:
    count = grid[0] * grid[1]

    def kernel(y: Any) -> None:
        with launch(grid, [1]) as (x, row, _):
            T.buffer_store(y, row * grid[0] + x, [row * grid[0] + x])

    function = program([(count, "int32")], kernel)
    assert code(function, interface).foldable
    found = run(function, [np.zeros(count, "int32")], interface)[0]
    np.testing.assert_array_equal(found, np.arange(count))


@needs_device
def test_the_size_of_a_group_is_three_specialisation_constants() -> None:
    """So that one module serves each size: here a size that only the launch tells."""
    threads = tirx.Var("threads", "int32")

    def kernel(y: Any) -> None:
        with launch([2], [threads]) as (group, thread):
            T.buffer_store(y, group * 1000 + thread, [group * threads + thread])

    function = program([(24, "int32")], kernel)
    function = tirx.PrimFunc([*function.params, threads], function.body, attrs=function.attrs)
    text = disassembled(code(function))
    numbers = dict(re.findall(r"OpDecorate (%\w+) SpecId (\d)", text))
    (size,) = re.findall(r"OpDecorate (%\w+) BuiltIn WorkgroupSize", text)
    (axes,) = re.findall(rf"{size} = OpSpecConstantComposite %\w+ (%\w+) (%\w+) (%\w+)", text)
    assert [numbers[axis] for axis in axes] == ["0", "1", "2"]
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built = tvm.compile(module, target=ADDRESSES, tir_pipeline="bitfabric.device")
    for count in (12, 4):
        y = tvm.runtime.tensor(np.zeros(24, "int32"), tvm.runtime.device("vulkan", 0))
        built["main"](y, count)
        expected = np.zeros(24, "int32")
        expected[: 2 * count] = (1000 * np.arange(2)[:, None] + np.arange(count)).ravel()
        np.testing.assert_array_equal(y.numpy(), expected)


def test_small_grids_are_launched_as_they_are() -> None:
    def kernel(y: Any) -> None:
        with launch([65535], [1]) as (i, _):
            T.buffer_store(y, i, [i])

    kernel_code = code(program([(65535, "int32")], kernel))
    assert not kernel_code.foldable
    assert kernel_code.block_bytes == 8


@needs_device
@both_interfaces
@pytest.mark.parametrize("without", [(), ("int64",)], ids=["int64", "pairs"])
def test_scalars_of_every_type(interface: tvm.target.Target, without: tuple[str, ...]) -> None:
    """Each is used twice, in a branch and after it."""
    variables = {name: tirx.Var(f"n_{name}", name) for name in SCALARS}
    on = target(*without, addresses=interface is ADDRESSES)

    def kernel(x: Any, y: Any) -> None:
        with launch([1], [1]) as (i, _):
            for n, variable in enumerate(variables.values()):
                value = tirx.Cast("float32", variable)
                with T.If(x[i] > 0), T.Then():
                    T.buffer_store(y, value, [2 * n])
                T.buffer_store(y, value, [2 * n + 1])

    count = 2 * len(SCALARS)
    function = program([(1, "int32"), (count, "float32")], kernel)
    function = tirx.PrimFunc(
        [*function.params, *variables.values()], function.body, attrs=function.attrs
    ).with_attr("global_symbol", "main")
    built = tvm.compile(
        tvm.IRModule({"main": function}), target=on, tir_pipeline="bitfabric.device"
    )
    device = tvm.runtime.device("vulkan", 0)
    x, y = (
        tvm.runtime.tensor(a, device) for a in (np.ones(1, "int32"), np.zeros(count, "float32"))
    )
    built["main"](x, y, *SCALARS.values())
    expected = np.array([v for v in SCALARS.values() for _ in range(2)], "float32")
    np.testing.assert_array_equal(y.numpy(), expected)


@needs_device
@pytest.mark.parametrize("on", [ADDRESSES, DESCRIPTORS], ids=["addresses", "descriptors"])
def test_many_buffers(on: tvm.target.Target) -> None:
    """Their addresses need more than the push constants, so that the block is in a buffer."""
    count = 15 if on is DESCRIPTORS else 24

    def kernel(*tensors: Any) -> None:
        with launch([4], [1]) as (i, _):
            total = tensors[0][i]
            for tensor in tensors[1:-1]:
                total = total + tensor[i]
            T.buffer_store(tensors[-1], total, [i])

    function = program([(4, "int32")] * count, kernel)
    assert code(function, on).spilled == (on is ADDRESSES)
    arrays = [np.arange(4, dtype="int32") * n for n in range(count)]
    np.testing.assert_array_equal(run(function, arrays, on)[-1], sum(arrays[:-1]))
