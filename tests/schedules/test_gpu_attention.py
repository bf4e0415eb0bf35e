"""Attention and its adjoint on graphics processors compute what float64 numpy computes."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from bitfabric.models.kernels import AttentionShape, attention
from bitfabric.models.kernels.attention import attention_vjp
from bitfabric.schedules import schedule
from bitfabric.schedules.gpu import attention_vjp as adjoint_rule
from bitfabric.targets import Target
from bitfabric.targets.opencl import ADRENO, OPENCL
from tvm import tirx

from .attention_reference import PackedAttention, rope_table
from .kernel_harness import every_gpu, prim_func, run, tolerance

F32, I32 = "float32", "int32"
# Heads, key heads, head width, rows, tokens of a row. Halves of a head that are of whole vectors of
# four, of two, and of one; rows of whole blocks and not; heads that share keys.
SIZES = [
    (4, 2, 32, 2, 33),
    (1, 1, 44, 1, 64),
    (1, 1, 50, 1, 21),
    (2, 1, 128, 1, 50),
    (4, 2, 64, 6, 130),
]


def _without_shared_memory(target: Target) -> Target:
    return replace(target, features=target.features - {"shared_memory"})


def _starts(batch: int, context: int) -> np.ndarray:
    """Return several documents a row, of other lengths in each, and padding at the end."""
    starts = np.zeros((batch, context), I32)
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


class _Case:
    """Random inputs of a size, and the reference."""

    def __init__(self, size: tuple[int, ...]) -> None:
        *heads, self.batch, self.context = size
        self.shape = AttentionShape(*heads)
        rng, rows = np.random.default_rng(0), self.batch * self.context
        self.qkv = rng.standard_normal((rows, self.shape.width)).astype(F32)
        self.dy = rng.standard_normal((rows, self.shape.heads * self.shape.head_dim)).astype(F32)
        rope = rope_table(self.context, self.shape.head_dim).astype(F32)
        self.inputs = [self.qkv, _starts(self.batch, self.context), rope]
        self.reference = PackedAttention(*self.inputs, self.shape.heads, self.shape.kv_heads)

    def forward(self, target: Target) -> np.ndarray:
        function = _forward(self.shape, self.batch, self.context)
        return run(function, target, self.inputs, [self.dy.shape])[0]

    def backward(self, target: Target) -> np.ndarray:
        function = _backward(self.shape, self.batch, self.context)
        return run(function, target, [self.dy, *self.inputs], [self.qkv.shape])[0]

    def check_backward(self, target: Target) -> None:
        expected, actual = self.reference.backward(self.dy), self.backward(target)
        if "fp16" not in target.features:
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)
        size = self.shape.heads * self.shape.head_dim
        keys = self.shape.kv_heads * self.shape.head_dim
        for part in np.split(actual - expected, [size, size + keys], axis=1):
            assert np.linalg.norm(part) <= tolerance(target, 1e-6) * np.linalg.norm(expected)


@every_gpu
@pytest.mark.parametrize("size", SIZES)
def test_attention(target: Target, size: tuple[int, ...]) -> None:
    case = _Case(size)
    np.testing.assert_allclose(case.forward(target), case.reference.forward(), atol=3e-6)


@every_gpu
@pytest.mark.parametrize("size", SIZES)
def test_adjoint(target: Target, size: tuple[int, ...]) -> None:
    _Case(size).check_backward(target)


@every_gpu
def test_rows_are_read_where_they_lie_without_shared_memory(target: Target) -> None:
    bare, case = _without_shared_memory(target), _Case((2, 1, 40, 1, 35))
    np.testing.assert_allclose(case.forward(bare), case.reference.forward(), atol=3e-6)
    case.check_backward(bare)


@every_gpu
def test_a_work_group_adds_the_query_heads_where_there_are_enough(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjoint_rule, "BUSY", 0)
    case = _Case((3, 1, 32, 1, 36))
    case.check_backward(target)


@every_gpu
def test_the_adjoint_is_the_same_every_time(target: Target) -> None:
    case = _Case(SIZES[0])
    np.testing.assert_array_equal(case.backward(target), case.backward(target))


@every_gpu
def test_other_documents_are_not_read(target: Target) -> None:
    case = _Case((1, 1, 32, 1, 64))
    _, starts, _ = case.inputs
    starts[:] = 0
    starts[:, 32:] = 32
    before = case.forward(target)
    case.qkv[:32] = np.nan
    np.testing.assert_array_equal(case.forward(target)[32:], before[32:])


def _shared_bytes(function: tirx.PrimFunc, target: Target) -> list[int]:
    """Return the memory that the work-groups of each launch of a scheduled kernel share."""
    _, scheduled = schedule(function, target)
    launches = str(scheduled).split('launch_thread("blockIdx.x"')[1:]
    allocation = re.compile(r'alloc_shared\(\(([\d, ]+)\)(?:, "float(\d+)(?:x(\d))?")?\)')
    return [
        sum(
            math.prod(int(extent) for extent in extents.split(",") if extent.strip())
            * int(bits or 32)
            // 8
            * int(lanes or 1)
            for extents, bits, lanes in allocation.findall(launch)
        )
        for launch in launches
    ]


@pytest.mark.parametrize("head_dim", [32, 50, 64, 96, 120, 128])
def test_work_groups_stay_within_their_memory(head_dim: int) -> None:
    shape, limit = AttentionShape(2, 2, head_dim), OPENCL.limits
    assert limit is not None
    used = _shared_bytes(_forward(shape, 1, 128), OPENCL)
    used += _shared_bytes(_backward(shape, 1, 128), OPENCL)
    assert len(used) == 3
    assert all(16 * head_dim * 4 < size <= limit.shared_bytes for size in used), used


@pytest.mark.parametrize("head_dim", [64, 128])
def test_work_groups_of_halves_stay_within_their_memory(head_dim: int) -> None:
    backward = _backward(AttentionShape(2, 2, head_dim), 1, 128)
    *_, queries, keys = _shared_bytes(backward, ADRENO)
    assert 16 * head_dim * 2 < min(queries, keys)
    assert max(queries, keys) <= ADRENO.limits.shared_bytes
