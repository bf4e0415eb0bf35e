"""Cooperative matrices: the modules, which no device here runs, say what TIR says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tvm
from bitfabric.compiler.spirv.interface import Access
from bitfabric.schedules.gpu.kernel import barrier, launch, shared
from bitfabric.targets import FabricError
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .programs import program, target
from .runner import both_interfaces, code, disassembled, validate

UNITS = {"f16": (16, 16, 16, "float16", "float32"), "s8": (16, 16, 32, "int8", "int32")}


def product(unit: str, through_shared: bool, words: bool = False) -> tirx.PrimFunc:
    """Return two products of fragments into two sums; `words` keeps the bytes as words."""
    m, n, k, factor, result = UNITS[unit]
    held, per_word = ("int32", 4) if words else (factor, 1)

    def kernel(a: Any, b: Any, c: Any) -> None:
        with launch([1], [32]) as (_, thread):
            left = T.alloc_buffer([m * k], factor, scope="wmma.matrix_a")
            right = T.alloc_buffer([2 * k * n], factor, scope="wmma.matrix_b")
            sums = T.alloc_buffer([2 * m * n], result, scope="wmma.accumulator")
            memory = a
            if through_shared:
                memory = shared([m * k // per_word], held)
                T.buffer_store(memory, a[thread], [thread])
                barrier()
            source = memory.access_ptr("r", offset=0)
            shape = (m, n, k)
            T.evaluate(T.tvm_load_matrix_sync(left.data, *shape, 0, source, k, "row_major"))
            for i in range(2):
                source = b.access_ptr("r", offset=i * k * n // per_word)
                T.evaluate(T.tvm_fill_fragment(sums.data, *shape, i, tirx.const(0, result)))
                T.evaluate(T.tvm_load_matrix_sync(right.data, *shape, i, source, k, "col_major"))
                total = (sums.data, i)
                T.evaluate(T.tvm_mma_sync(*total, left.data, 0, right.data, i, *total))
                sink = c.access_ptr("w", offset=i * m * n)
                T.evaluate(T.tvm_store_matrix_sync(sums.data, *shape, i, sink, n, "row_major"))

    sizes = [(m * k // per_word, held), (2 * k * n // per_word, held), (2 * m * n, result)]
    return program(sizes, kernel)


def with_matrices(interface: tvm.target.Target) -> tvm.target.Target:
    """Return the target whose devices have matrix units, too."""
    addresses = len(interface.keys) > 2
    return target(addresses=addresses, supports_cooperative_matrix=True)


@both_interfaces
@pytest.mark.parametrize("through_shared", [False, True], ids=["global", "shared"])
@pytest.mark.parametrize("unit", UNITS)
def test_modules_are_valid(
    unit: str, through_shared: bool, interface: tvm.target.Target, tmp_path: Path
) -> None:
    kernel = code(product(unit, through_shared), with_matrices(interface))
    assert validate(kernel, tmp_path) == ""
    assert kernel.vulkan == (1, 3)
    assert {"cooperativeMatrix", "vulkanMemoryModel"} <= set(kernel.features)
    assert [a.access for a in kernel.arguments] == [Access.READ, Access.READ, Access.WRITE]


@pytest.mark.parametrize("unit", UNITS)
def test_shapes_layouts_and_signs(unit: str) -> None:
    text = disassembled(code(product(unit, False), target(supports_cooperative_matrix=True)))
    _, _, k, factor, _ = UNITS[unit]
    shapes = {
        tuple(found)
        for found in re.findall(
            r"OpTypeCooperativeMatrixKHR %\w+ %uint_3 %uint_(\d+) %uint_(\d+) %uint_(\d+)", text
        )
    }
    assert shapes == {("16", str(k), "0"), (str(k), "16", "1"), ("16", "16", "2")}
    loads = re.findall(
        r"OpCooperativeMatrixLoadKHR %\d+ %\d+ %uint_(\d) %uint_(\d+) Aligned 16", text
    )
    assert loads == [("0", str(k)), ("1", str(k)), ("1", str(k))]
    assert text.count("OpCooperativeMatrixMulAddKHR") == 2
    signed = "MatrixASignedComponentsKHR|MatrixBSignedComponentsKHR"
    assert text.count(signed) == (2 if factor == "int8" else 0)


@both_interfaces
def test_bytes_kept_as_words_have_strides_in_words(
    interface: tvm.target.Target, tmp_path: Path
) -> None:
    kernel = code(product("s8", True, words=True), with_matrices(interface))
    assert validate(kernel, tmp_path) == ""
    strides = re.findall(
        r"OpCooperativeMatrixLoadKHR %\d+ %\d+ %uint_\d %(\w+)", disassembled(kernel)
    )
    assert strides == ["uint_8"] * 3


def test_shared_memory_is_seen_by_other_threads() -> None:
    """In Vulkan's memory model each access and barrier says so."""
    text = disassembled(code(product("f16", True), target(supports_cooperative_matrix=True)))
    assert "OpMemoryModel PhysicalStorageBuffer64 Vulkan" in text
    (variable,) = re.findall(r"(%\d+) = OpVariable %\w+ Workgroup", text)
    (chain,) = re.findall(rf"(%\d+) = OpAccessChain %\w+ {variable} %\d+\n", text)
    assert re.search(rf"OpStore {chain} %\d+ NonPrivatePointer", text)
    (order,) = re.findall(r"OpControlBarrier %uint_2 %uint_2 %uint_(\d+)", text)
    assert int(order) == 0x8 | 0x100 | 0x2000 | 0x4000


def test_a_target_without_them_is_refused() -> None:
    with pytest.raises(FabricError, match="uses matrix units"):
        code(product("f16", False))
