"""Kernels and functions over windows compute, bit for bit, what they did over whole tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from bitfabric.compiler import CompileOptions, LoraOptions
from bitfabric.compiler.device_code import NAME as DEVICE_CODE
from bitfabric.compiler.pipeline import apply_schedules, build_graph, fuse, lower
from bitfabric.compiler.windowed_kernel import split_kernel
from bitfabric.compiler.windows import check_adapter, split
from bitfabric.models.kernels import embed, logits, sum_squares
from bitfabric.models.lora import adapter_layout
from bitfabric.schedules import schedule
from bitfabric.schedules.gpu.kernel import build, elements, scratch
from bitfabric.schedules.gpu.vectors import fours
from bitfabric.schedules.tir import load, store, when
from bitfabric.targets import FabricError, Target
from bitfabric.targets.opencl import OPENCL
from bitfabric.targets.windows import windows
from tvm import relax, te, tirx

from ..parity.conftest import BASE
from ..schedules.kernel_harness import every_gpu, prim_func

UNLIMITED = 1 << 40
TINY = CompileOptions(context=12, lora=LoraOptions(rank=1, modules=("q_proj", "down_proj")))


def limited(limit: int) -> Target:
    """Return the OpenCL target with another largest buffer."""
    assert OPENCL.limits is not None
    return replace(OPENCL, limits=replace(OPENCL.limits, max_buffer=limit))


def run(function: tirx.PrimFunc, limit: int, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run a scheduled kernel over windows of some bytes; returns every array after it."""
    kernel, counts = split_kernel(function, limit)
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    options = tvm.target.Target(OPENCL.options, host="llvm")
    compiled = tvm.compile(module, target=options, tir_pipeline=DEVICE_CODE)["main"]
    device = tvm.runtime.device("opencl", 0)
    tensors = []
    for array, count in zip(arrays, counts, strict=True):
        shapes = windows(array.shape, str(array.dtype), limit) if count > 1 else None
        shapes = shapes or [array.shape]
        assert len(shapes) == count
        step = math.prod(shapes[0])
        parts = (array.reshape(-1)[i * step :][: math.prod(s)] for i, s in enumerate(shapes))
        tensors.append(
            [
                tvm.runtime.tensor(part.reshape(shape).copy(), device)
                for part, shape in zip(parts, shapes, strict=True)
            ]
        )
    compiled(*[part for parts in tensors for part in parts])
    return [np.concatenate([part.numpy().reshape(-1) for part in parts]) for parts in tensors]


def check(
    function: tirx.PrimFunc, limit: int, arrays: Sequence[np.ndarray], split: Sequence[int]
) -> list[np.ndarray]:
    """Compare a kernel over windows with the kernel as it is; `split` names what must be split."""
    _, counts = split_kernel(function, limit)
    assert [i for i, count in enumerate(counts) if count > 1] == list(split)
    whole, tiled = run(function, UNLIMITED, arrays), run(function, limit, arrays)
    for left, right in zip(whole, tiled, strict=True):
        np.testing.assert_array_equal(right, left)
    return tiled


def signature(*shapes: tuple[int, ...]) -> tirx.PrimFunc:
    """Return a PrimFunc over float32 tensors, the last one its output."""
    inputs = [te.placeholder(shape, "float32", f"x{i}") for i, shape in enumerate(shapes[:-1])]
    return te.create_prim_func([*inputs, te.compute(shapes[-1], lambda *_: 0.0)])


def of_rule(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return the function as the target's rule lays it out."""
    return schedule(function, OPENCL)[1]


def random(*shape: int) -> np.ndarray:
    """Return normal float32 values."""
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype("float32")


@every_gpu
@pytest.mark.parametrize("symbolic", [False, True])
def test_embedding_and_its_output(target: Target, symbolic: bool) -> None:
    count = tirx.Var("n", "int64") if symbolic else 9
    types = [((count,), "int32"), ((101, 32), "int8"), ((101,), "float32")]
    function = of_rule(prim_func("embed", embed, types))
    tokens = np.array([0, 15, 31, 32, 50, 99, 100, 3, 64], "int32")
    table = np.random.default_rng(0).integers(-127, 128, (101, 32), "int8")
    out = np.zeros((9, 32), "float32")
    arrays = [tokens, table, random(101), out]
    tiled = check(function, 512, arrays, [1] if symbolic else [1, 3])
    expected = table[tokens].astype("float32") * arrays[2][tokens, None]
    np.testing.assert_array_equal(tiled[3], expected.reshape(-1))


@every_gpu
def test_logits(target: Target) -> None:
    types = [((5, 48), "float32"), ((203, 48), "int8"), ((203,), "float32")]
    function = of_rule(prim_func("logits", logits, types))
    table = np.random.default_rng(0).integers(-127, 128, (203, 48), "int8")
    arrays = [random(5, 48), table, random(203), np.zeros((5, 203), "float32")]
    out = check(function, 768, arrays, [0, 1, 2, 3])[3].reshape(5, 203)
    expected = arrays[0].astype("float64") @ (table.T * arrays[2].astype("float64"))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-3)


@every_gpu
def test_a_reduction_over_windows(target: Target) -> None:
    function = of_rule(prim_func("sum_squares", sum_squares, [((5003,), "float32")]))
    check(function, 4096, [random(5003), np.zeros(1, "float32")], [0])


def _unaligned(x: Any, y: Any) -> None:
    """Copy all but the first element, in vectors that begin at odd places."""

    def copy(i: Any) -> None:
        store(y, load(x, i * 4 + 1, lanes=4), i * 4 + 1)

    elements(49, 32, copy)


def _through_workspace(x: Any, y: Any) -> None:
    """Reverse the rows by way of memory between two launches, written as vectors."""
    half = scratch([64, 20])
    elements(64 * 5, 32, lambda i: _put(fours(half), fours(x)[i // 5, i % 5], i // 5, i % 5))
    elements(64 * 20, 32, lambda i: _put(y, half[63 - i // 20, i % 20], i // 20, i % 20))


def _put(buffer: Any, value: Any, *index: Any) -> None:
    tirx.script.builder.ir.buffer_store(buffer, value, list(index))


def _guarded(x: Any, y: Any) -> None:
    """Read past the last window, and past the tensor, only where a condition forbids it."""

    def element(i: Any) -> None:
        inside = i < 200
        value = tirx.if_then_else(inside, x[i], tirx.const(7.0, "float32"))
        when(i < 260, lambda: _put(y, value, i))

    elements(320, 32, element)


@every_gpu
@pytest.mark.parametrize(
    ("body", "shapes", "limit", "expected"),
    [
        (_unaligned, [(200,), (200,)], 128, lambda x: np.r_[0.0, x[1:197], [0.0] * 3]),
        (_through_workspace, [(64, 20), (64, 20)], 1000, lambda x: x[::-1]),
        (_guarded, [(200,), (260,)], 256, lambda x: np.r_[x, [7.0] * 60]),
    ],
    ids=["unaligned-vectors", "workspace", "guarded"],
)
def test_every_kind_of_access(
    target: Target,
    body: Callable[..., None],
    shapes: list[tuple[int, ...]],
    limit: int,
    expected: Callable[[np.ndarray], np.ndarray],
) -> None:
    function = build(signature(*shapes), body)
    x, y = random(*shapes[0]), np.zeros(shapes[1], "float32")
    out = check(function, limit, [x, y], [0, 1])[1]
    np.testing.assert_array_equal(out.reshape(y.shape), expected(x).astype("float32"))


def test_a_large_workspace_is_split_where_no_parameter_is() -> None:
    function = build(signature((16,), (16,)), _large_workspace)
    kernel, counts = split_kernel(function, 1024)
    assert counts == [1, 1]
    assert max(allocated(kernel)) <= 1024
    assert split_kernel(function, 1 << 20)[0].same_as(function)


def _large_workspace(x: Any, y: Any) -> None:
    memory = scratch([16, 100])
    elements(1600, 32, lambda i: _put(memory, x[i // 100], i // 100, i % 100))
    elements(16, 16, lambda i: _put(y, memory[i, 99], i))


def allocated(function: tirx.PrimFunc) -> list[int]:
    """Return the bytes of each workspace of static size."""
    sizes = [0]

    def visit(node: tirx.AllocBuffer) -> None:
        extents = [e.value if isinstance(e, tirx.IntImm) else 0 for e in node.buffer.shape]
        kind = tvm.DataType(str(node.buffer.dtype))
        if node.buffer.scope() in ("", "global"):
            sizes.append(math.prod(int(e) for e in extents) * kind.bits * kind.lanes // 8)

    tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, visit))
    return sizes


@pytest.mark.parametrize("limit", [2600, 1 << 14])
@pytest.mark.slow
def test_no_buffer_of_a_model_is_above_the_limit(limit: int) -> None:
    target = limited(limit)
    config = replace(BASE, vocab_size=301)
    scheduled, _ = apply_schedules(fuse(build_graph(config, TINY)), target)
    module = lower(split(scheduled, target))
    storages = []

    def visit(node: relax.Expr) -> None:
        name = getattr(getattr(node, "op", None), "name", "")
        if name in ("relax.vm.alloc_storage", "relax.memory.alloc_storage"):
            storages.extend(
                int(e) for e in getattr(node.args[0], "values", ()) if isinstance(e, tirx.IntImm)
            )

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
            continue
        assert max(allocated(function)) <= limit
        for parameter in function.params:
            extents = [e.value if isinstance(e, tirx.IntImm) else 0 for e in parameter.shape]
            size = math.prod(int(e) for e in extents) * tvm.DataType(str(parameter.dtype)).bits
            assert size // 8 <= limit, (function.attrs["fabric.kernel"], parameter.shape)
    assert storages
    assert max(storages) <= limit


def test_a_model_that_fits_stays_as_it_is() -> None:
    scheduled, _ = apply_schedules(fuse(build_graph(BASE, TINY)), OPENCL)
    assert split(scheduled, OPENCL).same_as(scheduled)


def test_an_operator_that_is_no_kernel_is_refused() -> None:
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((64, 64), "float32"))
    with bb.function("main", [x]):
        bb.emit_func_output(bb.emit(relax.op.reshape(x, (4096,))))
    bb.add_func(build(signature((16,), (16,)), _large_workspace), "kernel")
    with pytest.raises(FabricError, match=r"relax\.reshape"):
        split(bb.get(), limited(1024))


def test_an_adapter_that_no_kernel_could_address_is_refused() -> None:
    layout = adapter_layout(BASE, LoraOptions(rank=4))
    check_adapter(layout, limited(4 * layout.size))
    with pytest.raises(FabricError, match="rank 4"):
        check_adapter(layout, limited(4 * layout.size - 1))
