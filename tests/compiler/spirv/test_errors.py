"""What there is no code for, and what a target lacks, is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tvm
from bitfabric.schedules.gpu.kernel import launch, registers
from bitfabric.targets import FabricError
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .programs import ADDRESSES, program, target
from .runner import run


def one(dtype: str, body: Callable[[Any], Any]) -> tirx.PrimFunc:
    """Return a PrimFunc that applies a function to an element."""

    def kernel(x: Any) -> None:
        with launch([1], [1]) as (i, _):
            T.buffer_store(x, body(x[i]), [i])

    return program([(1, dtype)], kernel)


def refused(function: tirx.PrimFunc, on: tvm.target.Target) -> str:
    """Return the cause of the error that a PrimFunc's compilation ends with."""
    with pytest.raises(FabricError) as error:
        run(function, [], on)
    assert "main_kernel" in error.value.cause
    assert error.value.remedy.startswith("Compile for another target")
    return error.value.cause


@pytest.mark.parametrize(
    ("name", "function"),
    [
        (
            "the function spline",
            one("float32", lambda x: T.call_pure_extern("float32", "spline", x)),
        ),
        ("the function nextafterf", one("float32", lambda x: tirx.nextafter(x, x))),
        ("exp of float64", one("float64", tirx.exp)),
        ("the bits of bool as int8", one("bool", lambda x: tirx.reinterpret("int8", x) > 0)),
    ],
)
def test_what_there_is_no_code_for(name: str, function: tirx.PrimFunc) -> None:
    assert name in refused(function, ADDRESSES)


@pytest.mark.parametrize(
    ("ability", "dtype", "name"),
    [
        ("8bit_buffer", "int8", "8-bit elements"),
        ("16bit_buffer", "float16", "16-bit elements"),
        ("float64", "float64", "float64"),
        ("int64", "int64", "a buffer of uint64"),
    ],
)
def test_what_the_target_lacks(ability: str, dtype: str, name: str) -> None:
    assert name in refused(one(dtype, lambda x: x + x), target(ability))


def test_memory_seen_as_elements_of_another_width() -> None:
    def kernel(x: Any) -> None:
        with launch([1], [1]) as (i, _):
            held = registers([4], "float32")
            view = T.decl_buffer([8], "float16", data=held.data, scope="local")
            T.buffer_store(view, tirx.const(0, "float16"), [0])
            T.buffer_store(x, held[0], [i])

    assert "memory of float32 as float16" in refused(program([(1, "float32")], kernel), ADDRESSES)


def test_scalars_that_no_block_holds() -> None:
    """Without addresses the block cannot be spilled."""
    extents = [tirx.Var(f"n{i}", "int32") for i in range(40)]

    def kernel(x: Any) -> None:
        with launch([1], [1]) as (i, _):
            T.buffer_store(x, sum(extents[1:], extents[0]), [i])

    function = program([(1, "int32")], kernel)
    function = tirx.PrimFunc([*extents, *function.params], function.body, attrs=function.attrs)
    assert "scalar arguments of 160 bytes" in refused(function, target(addresses=False))
