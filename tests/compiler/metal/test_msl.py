"""The MSL of our kernels: a front end with Metal's types takes it, and it keeps to the limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import tvm
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.pipeline import tvm_target
from bitfabric.schedules.gpu.kernel import barrier, elements, launch, shared
from bitfabric.targets import FabricError, get_target
from bitfabric.targets.metal import TARGETS
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .emulation import complaints, needs_compiler
from .sources import captured, nano_sources, tiny_sources

SHARED = re.compile(r"^ +alignas\(16\) threadgroup (\w+?)(\d?) \w+\[(\d+)\];$", re.MULTILINE)
SHARED_BYTES = 32 << 10
HOT = ("bitlinear", "attention", "logits", "head_loss", "adamw", "embed", "rms_norm")
"""What runs for each layer or token; all of it has rows that are multiples of 16 bytes."""
SIZES = {"char": 1, "uchar": 1, "half": 2, "int": 4, "float": 4}
ANY_PROGRAM = ("rope_table", "take", "add")
"""Elementwise kernels, laid out by the rule for any program, whose extents may be 64-bit: none of
them runs in every layer."""
Value = Callable[[list[Any], Any], Any]
"""``value(buffers, i)`` returns what a kernel stores at an index."""


def kernel_module(count: int, value: Value) -> tvm.IRModule:
    """Return a kernel named ``sum`` over some inputs."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "global_symbol": "sum"})
        extent = tirx.const(64, "int32")
        *inputs, out = (T.arg(f"x{i}", T.buffer([extent], "float32")) for i in range(count + 1))
        elements(64, 32, lambda i: T.buffer_store(out, value(inputs, i), [i]))
    return tvm.IRModule({"sum": builder.get()})


def faults(sources: dict[str, str]) -> list[str]:
    """Return what is wrong with kernels, as far as their texts tell without a device."""
    found = []
    for name, source in sources.items():
        taken = sum(
            int(count) * SIZES[kind] * int(lanes or 1)
            for kind, lanes, count in SHARED.findall(source)
        )
        if taken > SHARED_BYTES:
            found.append(f"{name} takes {taken} bytes of a threadgroup's memory")
        if source.count("threadgroup_barrier(") and not taken:
            found.append(f"{name} waits for nothing")
        if not name.startswith(ANY_PROGRAM) and re.search(r"\((?:u?long)\)", source):
            found.append(f"{name} has 64-bit indices")
    return found


def without_vectors(sources: dict[str, str]) -> list[str]:
    """Return the computations of which no kernel reads four elements at once."""
    vector = re.compile(r"device (?:float|int|half)4\b")
    return [
        part
        for part in HOT
        if not any(vector.search(text) for name, text in sources.items() if part in name)
    ]


def assert_well(sources: dict[str, str]) -> None:
    """Check what can be checked of kernels without a device."""
    assert complaints(sources) == []
    assert faults(sources) == []


def test_what_is_wrong_with_a_kernel_is_told() -> None:
    sources = tiny_sources()
    name, source = next(
        (n, s) for n, s in sources.items() if SHARED.search(s) and not n.startswith(ANY_PROGRAM)
    )
    assert faults({name: source}) == []
    large = SHARED.sub(lambda found: found[0].replace(found[3], "99999"), source)
    (told,) = faults({name: large})
    assert "bytes of a threadgroup's memory" in told
    assert faults({name: source + "(ulong)"}) == [f"{name} has 64-bit indices"]
    assert faults({name: SHARED.sub("", source) + "threadgroup_barrier("}) == [
        f"{name} waits for nothing"
    ]
    narrow = {n: re.sub(r"device (\w+?)4\b", r"device \1", s) for n, s in sources.items()}
    assert without_vectors(narrow) == list(HOT)


@needs_compiler
def test_every_kernel_of_a_small_model_is_taken_and_within_the_limits() -> None:
    sources = tiny_sources()
    assert len(sources) > 50
    assert_well(sources)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("head", ["int8", "f16"])
@pytest.mark.parametrize("context", [1, 32, 512])
@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_every_kernel_of_nano_is_taken_for_every_preset(
    target: str, context: int, head: str
) -> None:
    assert_well(nano_sources(target, context, head))


def test_the_hot_kernels_read_vectors_and_add_by_simd_groups_and_matrices() -> None:
    sources = tiny_sources()
    assert without_vectors(sources) == []
    whole = "".join(sources.values())
    for word in ("simd_sum(", "simd_max("):
        assert word in whole
    # The products of a whole context, forward and back.
    for part in ("bitlinear_kernel", "bitlinear_vjp_kernel"):
        several = [text for name, text in sources.items() if part in name]
        assert any("simdgroup_multiply_accumulate(" in text for text in several), part
    # A function without its precision would be Metal's fast one, too coarse for angles.
    assert not re.search(r"(?<!precise::)\b(?:cos|sin|exp|exp2|log|sqrt|rsqrt)\(", whole)
    assert all("#pragma METAL fp math_mode(safe)" in text for text in sources.values())


@needs_compiler
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("= x0_ptr", "= int4(1) + x0_ptr"),
        ("= x0_ptr", "= simd_product(1.0f) + x0_ptr"),
        ("= x0_ptr", "= half2(float2(1.0f)) * float2(1.0f) + x0_ptr"),
        ("uint threadIdx [[", "uint threadIdx, threadgroup float* extra [["),
        ("[[ buffer(1) ]]", "[[ buffer(2) ]]"),
    ],
)
def test_the_front_end_refuses_what_metal_would(before: str, after: str) -> None:
    ((name, source),) = _copy().items()
    assert complaints({name: source}) == []
    wrong = source.replace(before, after, 1)
    assert wrong != source
    assert complaints({name: wrong})


def _compile(module: tvm.IRModule) -> tvm.runtime.Module:
    target = tvm_target(get_target("metal").with_host("x86_64-linux-gnu"))
    return tvm.compile(module, target=target, tir_pipeline=DEVICE_CODE)


def _copy() -> dict[str, str]:
    """Return a kernel that copies its input."""
    return captured(lambda: _compile(kernel_module(1, lambda buffers, i: buffers[0][i])))


def test_a_kernel_of_too_many_buffers_is_refused() -> None:
    def total(buffers: list[Any], i: Any) -> Any:
        return sum((buffer[i] for buffer in buffers[1:]), buffers[0][i])

    _compile(kernel_module(30, total))
    with pytest.raises(FabricError, match="takes 32 buffers as arguments where Metal has 31"):
        _compile(kernel_module(31, total))


def test_more_memory_of_a_threadgroup_than_there_is_is_refused() -> None:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "global_symbol": "large"})
        (out,) = (T.arg("out", T.buffer([tirx.const(64, "int32")], "float32")),)
        with launch([1], [64]) as (_, thread):
            memory = shared([32 * 1024 // 4 + 1])
            T.buffer_store(memory, T.float32(1), [thread])
            barrier()
            T.buffer_store(out, memory[thread ^ 1], [thread])
    with pytest.raises(FabricError, match="takes 32784 bytes of a threadgroup's memory"):
        _compile(tvm.IRModule({"large": builder.get()}))


def test_a_function_that_nobody_has_is_refused() -> None:
    def call(buffers: list[Any], i: Any) -> Any:
        return T.call_pure_extern("float32", "mystery", buffers[0][i])

    with pytest.raises(FabricError, match="calls mystery"):
        _compile(kernel_module(1, call))
