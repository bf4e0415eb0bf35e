"""Attention over the cache on graphics processors: any tokens, and unwritten memory unread."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from bitfabric.models.kernels import AttentionShape, cached_attention
from bitfabric.targets import Target
from tvm import relax, tirx

from .attention_reference import Cache, rope_table
from .kernel_harness import every_gpu, prim_func, run

F32, I32 = "float32", "int32"
CAPACITY, SEQUENCES = 304, 3
CASES = {
    "one": ([1], [200]),
    "first": ([2], [0]),
    # More positions than a work-group takes at a time, and its last one alone.
    "long": ([0], [300]),
    "border": ([0], [256]),
    "prefill": ([1] * 21, list(range(21))),
    "continued": ([0] * 19, list(range(130, 149))),
    "batch": ([2, 0, 1], [5, 140, 17]),
    # A block of several sequences, and one of a few tokens.
    "mixed": ([0] * 9 + [2] * 9 + [1], [*range(9), *range(30, 39), 3]),
    # Blocks of many tokens, of which the last is short.
    "prompt": ([1] * 150, list(range(30, 180))),
    # Enough tokens that those of mixed blocks share work-groups.
    "several": ([0] * 40 + [2] * 30 + [1], [*range(40), *range(30, 60), 3]),
}


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


def _check(target: Target, case: str, shape: AttentionShape, one: bool | None = None) -> None:
    sequence, position = (np.array(a, I32) for a in CASES[case])
    one = len(sequence) == 1 if one is None else one
    rng = np.random.default_rng(0)
    rope = rope_table(CAPACITY, shape.head_dim).astype(F32)
    cache = Cache(SEQUENCES, shape.kv_heads, shape.head_dim, CAPACITY)
    for s in set(sequence.tolist()):
        before = np.arange(position[sequence == s].min(), dtype=I32)
        past = rng.standard_normal((len(before), shape.width)).astype(F32)
        cache.append(past, np.full(len(before), s), before, rope)
    qkv = rng.standard_normal((len(sequence), shape.width)).astype(F32)
    inputs = [qkv, sequence, position, rope, cache.keys.astype(F32), cache.values.astype(F32)]
    cache.append(qkv, sequence, position, rope)

    *_, keys, values = run(_function("append_kv", shape, one), target, inputs)
    np.testing.assert_allclose(keys, cache.keys, atol=1e-6)
    np.testing.assert_allclose(values, cache.values, atol=1e-6)

    expected = cache.attend(qkv, sequence, position, rope)
    function = _function("cached_attention", shape, one)
    (y,) = run(function, target, [*inputs[:4], keys, values], [expected.shape])
    np.testing.assert_allclose(y, expected, atol=3e-6)


@every_gpu
@pytest.mark.parametrize("case", CASES)
def test_append_and_attend(target: Target, case: str) -> None:
    _check(target, case, AttentionShape(4, 2, 64))


@every_gpu
@pytest.mark.parametrize(("case", "head_dim"), [("prefill", 16), ("prefill", 32), ("mixed", 16)])
def test_narrow_heads(target: Target, case: str, head_dim: int) -> None:
    _check(target, case, AttentionShape(4, 2, head_dim))


@every_gpu
@pytest.mark.parametrize("case", ["long", "prefill", "prompt", "batch"])
def test_wide_heads(target: Target, case: str) -> None:
    _check(target, case, AttentionShape(2, 1, 128))


@every_gpu
@pytest.mark.parametrize(("case", "head_dim"), [("one", 44), ("one", 50), ("mixed", 44)])
def test_heads_that_are_no_power_of_two(target: Target, case: str, head_dim: int) -> None:
    _check(target, case, AttentionShape(1, 1, head_dim))


@every_gpu
@pytest.mark.parametrize("case", ["one", "prefill", "mixed"])
def test_any_number_of_tokens_without_shared_memory(target: Target, case: str) -> None:
    bare = replace(target, features=target.features - {"shared_memory"})
    _check(bare, case, AttentionShape(2, 1, 64))


@every_gpu
def test_one_token_of_any_number(target: Target) -> None:
    _check(target, "one", AttentionShape(4, 2, 64), one=False)
