"""Programs of a few statements, and the targets they are compiled for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from bitfabric.compiler.spirv.abilities import ADDRESS_KEY, SMALL_HALVES_KEY
from bitfabric.schedules.gpu.kernel import launch
from bitfabric.schedules.tir import when
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

Body = Callable[..., None]
ABILITIES = ("8bit_buffer", "16bit_buffer", "int8", "int16", "int64", "float16", "float64")
"""What Mesa's software device can do, as TVM's target says it."""


def target(
    *without: str, addresses: bool = True, small_halves: bool = False, **attributes: Any
) -> tvm.target.Target:
    """Return a target with all abilities but some, and with other attributes."""
    options: dict[str, Any] = {"kind": "vulkan", **attributes}
    options |= {f"supports_{name}": True for name in ABILITIES if name not in without}
    keys = [ADDRESS_KEY] * addresses + [SMALL_HALVES_KEY] * small_halves
    if keys:
        options["keys"] = ["vulkan", "gpu", *keys]
    return tvm.target.Target(options, host="llvm")


ADDRESSES, DESCRIPTORS = target(), target(addresses=False)


def program(types: Sequence[tuple[int, str]], body: Body) -> tirx.PrimFunc:
    """Return a PrimFunc over flat tensors, (elements, dtype) each; the body opens its launches."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        body(*[T.arg(f"t{i}", T.buffer([count], dtype)) for i, (count, dtype) in enumerate(types)])
    return builder.get()


def doubled() -> tirx.PrimFunc:
    """Return a program that doubles a buffer's first elements, as many as a scalar says."""
    count = tirx.Var("count", "int32")

    def kernel(x: Any) -> None:
        with launch([70000], [2]) as (i, j):
            place = i * 2 + j
            when(place < count, lambda: T.buffer_store(x, x[place] * T.float32(2), [place]))

    function = program([(8, "float32")], kernel)
    return tirx.PrimFunc([*function.params, count], function.body, attrs=function.attrs)
