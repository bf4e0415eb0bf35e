"""Attention and its adjoint compute what float64 numpy computes, inside documents only."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from bitfabric.models.kernels import AttentionShape, attention
from bitfabric.models.kernels.attention import attention_vjp
from bitfabric.targets import Target
from bitfabric.targets.cpu import host_cpu
from tvm import tirx

from .attention_reference import PackedAttention, rope_table
from .kernel_harness import compiles_for_arm, every_target, prim_func, run

F32, I32 = "float32", "int32"
HOST = host_cpu()
# Heads, key heads, head width, rows, tokens of a row.
SHAPES = [(2, 2, 16, 1, 5), (4, 2, 32, 2, 33), (3, 1, 48, 1, 96)]
WIDE = (4, 1, 128, 1, 70)


def _starts(batch: int, context: int) -> np.ndarray:
    """Return several documents a row, of other lengths in each, and padding at the end."""
    starts = np.zeros((batch, context), "int32")
    for b in range(batch):
        for begin in (0, context // 3 + b, 2 * context // 3):
            starts[b, begin:] = begin
        pad = context - context // 10
        starts[b, pad:] = np.arange(pad, context)
    return starts


def _forward(shape: AttentionShape, batch: int, context: int) -> tirx.PrimFunc:
    types = [
        ((batch * context, shape.width), F32),
        ((batch, context), I32),
        ((context, shape.head_dim), F32),
    ]
    return prim_func("attention", lambda bb, *v: attention(bb, *v, shape), types)


def _backward(shape: AttentionShape, batch: int, context: int) -> tirx.PrimFunc:
    types = [
        ((batch * context, shape.heads * shape.head_dim), F32),
        ((batch * context, shape.width), F32),
        ((batch, context), I32),
        ((context, shape.head_dim), F32),
    ]
    return prim_func("attention_vjp", lambda bb, *v: attention_vjp(bb, *v, shape), types)


def _inputs(shape: AttentionShape, batch: int, context: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((batch * context, shape.width)).astype(F32)
    return [qkv, _starts(batch, context), rope_table(context, shape.head_dim).astype(F32)]


@every_target
@pytest.mark.parametrize("size", [*SHAPES, WIDE])
def test_attention_and_adjoint(target: Target, size: tuple[int, ...]) -> None:
    *heads, batch, context = size
    shape = AttentionShape(*heads)
    qkv, starts, rope = inputs = _inputs(shape, batch, context)
    reference = PackedAttention(qkv, starts, rope, shape.heads, shape.kv_heads)
    rows, width = batch * context, shape.heads * shape.head_dim
    (y,) = run(_forward(shape, batch, context), target, inputs, [(rows, width)])
    np.testing.assert_allclose(y, reference.forward(), atol=3e-6)
    dy = np.random.default_rng(1).standard_normal((rows, width)).astype(F32)
    function = _backward(shape, batch, context)
    (dqkv,) = run(function, target, [dy, *inputs], [(rows, shape.width)])
    np.testing.assert_allclose(dqkv, reference.backward(dy), atol=2e-5)


def test_the_plain_kernels_agree() -> None:
    shape, batch, context = AttentionShape(2, 1, 16), 2, 21
    inputs = _inputs(shape, batch, context)
    dy = np.random.default_rng(1).standard_normal((42, 32)).astype(F32)
    for function, arrays, columns in (
        (_forward(shape, batch, context), inputs, 32),
        (_backward(shape, batch, context), [dy, *inputs], 64),
    ):
        fast, plain = (
            run(function, HOST, arrays, [(42, columns)], plain=p)[0] for p in (False, True)
        )
        np.testing.assert_allclose(fast, plain, atol=1e-5)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    shape = AttentionShape(6, 3, 32)
    inputs = _inputs(shape, 2, 50)
    dy = np.random.default_rng(1).standard_normal((100, 192)).astype(F32)
    function = _backward(shape, 2, 50)
    few, many = (_on_threads(n, function, [dy, *inputs], (100, shape.width)) for n in (1, 2))
    np.testing.assert_array_equal(few, many)


def _on_threads(
    count: int, function: tirx.PrimFunc, arrays: list[np.ndarray], output: tuple[int, int]
) -> np.ndarray:
    configure = tvm.get_global_func("runtime.config_threadpool")
    configure(1, count)
    try:
        return run(function, HOST, arrays, [output])[0]
    finally:
        configure(1, 1)


def test_they_compile_for_arm() -> None:
    shape = AttentionShape(2, 1, 64)
    assert compiles_for_arm(_forward(shape, 1, 100))
    assert compiles_for_arm(_backward(shape, 1, 100))
