"""Attention over the cache: any number of tokens of any sequences, and unwritten memory unread."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import tvm
from bitfabric.models.kernels import AttentionShape, cached_attention
from bitfabric.targets import Target
from bitfabric.targets.cpu import host_cpu
from tvm import relax, tirx

from .attention_reference import Cache, rope_table
from .kernel_harness import compiles_for_arm, every_target, prim_func, run

F32, I32 = "float32", "int32"
CAPACITY, SEQUENCES = 208, 3


@lru_cache
def _function(kernel: str, shape: AttentionShape, one: bool) -> tirx.PrimFunc:
    tokens = 1 if one else tirx.Var("n", "int64")
    m, b = tirx.Var("m", "int64"), tirx.Var("b", "int64")
    d, kv = shape.head_dim, shape.kv_heads
    types = [
        ((tokens, shape.width), F32),
        ((tokens,), I32),
        ((tokens,), I32),
        ((m, d), F32),
        ((b, kv, d, m), F32),
        ((b, kv, m, d), F32),
    ]

    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bb.emit(relax.Tuple(list(cached_attention(bb, *v[:4], v[4:], shape))))

    return prim_func(kernel, emit, types)


def _tokens(case: str) -> tuple[list[int], list[int]]:
    """Return the sequences and positions of the new tokens."""
    return {
        "one": ([1], [200]),
        "first": ([2], [0]),
        "prefill": ([1] * 21, list(range(21))),
        "continued": ([0] * 19, list(range(130, 149))),
        "batch": ([2, 0, 1], [5, 64, 17]),
        "mixed": ([0] * 9 + [2] * 9 + [1], [*range(9), *range(30, 39), 3]),
    }[case]


CASES = ["one", "first", "prefill", "continued", "batch", "mixed"]


@every_target
@pytest.mark.parametrize("case", CASES)
def test_append_and_attend(target: Target, case: str) -> None:
    _check(target, case, AttentionShape(6, 2, 64))


@pytest.mark.parametrize("case", CASES)
def test_more_query_heads_than_rows_of_a_tile(case: str) -> None:
    _check(host_cpu(), case, AttentionShape(9, 1, 48))


def _check(target: Target, case: str, shape: AttentionShape) -> None:
    sequence, position = (np.array(a, "int32") for a in _tokens(case))
    rng = np.random.default_rng(0)
    rope = rope_table(CAPACITY, shape.head_dim).astype(F32)
    cache = Cache(SEQUENCES, shape.kv_heads, shape.head_dim, CAPACITY)
    for s in set(sequence.tolist()):
        before = np.arange(position[sequence == s].min(), dtype="int32")
        past = rng.standard_normal((len(before), shape.width)).astype(F32)
        cache.append(past, np.full(len(before), s), before, rope)
    qkv = rng.standard_normal((len(sequence), shape.width)).astype(F32)
    inputs = [qkv, sequence, position, rope, cache.keys.astype(F32), cache.values.astype(F32)]
    cache.append(qkv, sequence, position, rope)
    one = len(sequence) == 1

    *_, keys, values = run(_function("append_kv", shape, one), target, inputs)
    np.testing.assert_allclose(keys, cache.keys, atol=1e-6)
    np.testing.assert_allclose(values, cache.values, atol=1e-6)

    expected = cache.attend(qkv, sequence, position, rope)
    function = _function("cached_attention", shape, one)
    (y,) = run(function, target, [*inputs[:4], keys, values], [expected.shape])
    np.testing.assert_allclose(y, expected, atol=3e-6)


def test_a_relax_program_changes_the_callers_cache() -> None:
    shape = AttentionShape(2, 1, 16)
    bb = relax.BlockBuilder()
    shapes = [(1, shape.width), (1,), (1,), (32, 16), (1, 1, 16, 32), (1, 1, 32, 16)]
    types = list(zip(shapes, [F32, I32, I32, F32, F32, F32], strict=True))
    v = [relax.Var(f"v{i}", relax.TensorType(list(s), t)) for i, (s, t) in enumerate(types)]
    with bb.function("main", v):
        with bb.dataflow():
            out = bb.emit_output(cached_attention(bb, *v[:4], v[4:], shape)[0])
        bb.emit_func_output(out)
    target = tvm.target.Target(host_cpu().options)
    machine = relax.VirtualMachine(tvm.compile(bb.get(), target=target), tvm.cpu())
    values = [1, 0, 5, 1, 0, 0]
    arrays = [np.full(s, value, t) for (s, t), value in zip(types, values, strict=True)]
    tensors = [tvm.runtime.tensor(a) for a in arrays]
    machine["main"](*tensors)
    written = tensors[5].numpy()[0, 0]
    np.testing.assert_array_equal(written[5], 1.0)
    assert np.count_nonzero(written) == 16


@pytest.mark.slow
def test_they_compile_for_arm() -> None:
    shape = AttentionShape(6, 2, 64)
    for kernel in ("append_kv", "cached_attention"):
        assert compiles_for_arm(_function(kernel, shape, False))
