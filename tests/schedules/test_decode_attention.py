"""One new token over the cache: its key and value are added, and unwritten memory stays unread."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from bitfabric.models.kernels import AttentionShape, decode_attention
from bitfabric.schedules import schedule
from bitfabric.targets import Target
from bitfabric.targets.cpu import host_cpu
from bitfabric.targets.opencl import MALI, OPENCL
from tvm import relax, tirx

from .attention_reference import Cache, rope_table
from .kernel_harness import compiles_for_arm, every_gpu, every_target, prim_func, run

F32, I32 = "float32", "int32"
SEQUENCES = 3
PLACES = {"first": (2, 0), "second": (0, 1), "within": (1, 69), "many": (1, 200), "last": (0, 303)}
every_place = pytest.mark.parametrize("place", list(PLACES.values()), ids=list(PLACES))


@lru_cache
def _function(shape: AttentionShape) -> tirx.PrimFunc:
    m, b = tirx.Var("m", "int64"), tirx.Var("b", "int64")
    d, kv = shape.head_dim, shape.kv_heads
    types = [
        ((1, shape.width), F32),
        ((1,), I32),
        ((1,), I32),
        ((m, d), F32),
        ((b, kv, d, m), F32),
        ((b, kv, m, d), F32),
    ]

    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bb.emit(relax.Tuple(list(decode_attention(bb, *v[:4], v[4:], shape))))

    return prim_func("decode_attention", emit, types)


def _check(
    target: Target,
    place: tuple[int, int],
    shape: AttentionShape,
    capacity: int = 304,
    plain: bool = False,
) -> None:
    s, position = place
    rng = np.random.default_rng(0)
    rope = rope_table(capacity, shape.head_dim).astype(F32)
    cache = Cache(SEQUENCES, shape.kv_heads, shape.head_dim, capacity)
    before = np.arange(position, dtype=I32)
    past = rng.standard_normal((position, shape.width)).astype(F32)
    cache.append(past, np.full(position, s), before, rope)
    qkv = rng.standard_normal((1, shape.width)).astype(F32)
    token = [qkv, np.array([s], I32), np.array([position], I32), rope]
    inputs = [*token, cache.keys.astype(F32), cache.values.astype(F32)]
    cache.append(*token)
    expected = cache.attend(*token)
    out = np.full(expected.shape, np.nan, F32)
    *_, keys, values, y = run(_function(shape), target, [*inputs, out], plain=plain)
    np.testing.assert_allclose(keys, cache.keys, atol=1e-6)
    np.testing.assert_allclose(values, cache.values, atol=1e-6)
    np.testing.assert_allclose(y, expected, atol=3e-6)


@every_place
def test_the_meaning(place: tuple[int, int]) -> None:
    _check(host_cpu(), place, AttentionShape(6, 2, 16), plain=True)


@every_target
@every_place
def test_on_processors(target: Target, place: tuple[int, int]) -> None:
    _check(target, place, AttentionShape(6, 2, 64))


def test_threads_on_processors() -> None:
    _check(host_cpu(), PLACES["last"], AttentionShape(18, 9, 48))


@pytest.mark.parametrize("place", ["first", "many"])
def test_heads_that_are_no_whole_vectors_on_processors(place: str) -> None:
    _check(host_cpu(), PLACES[place], AttentionShape(4, 2, 44))


@every_gpu
@every_place
def test_on_graphics_processors(target: Target, place: tuple[int, int]) -> None:
    _check(target, place, AttentionShape(6, 2, 64))


@every_gpu
@pytest.mark.parametrize("shape", [(2, 1, 128), (1, 1, 44), (4, 4, 16), (1, 1, 50)], ids=str)
def test_heads_of_other_widths(target: Target, shape: tuple[int, int, int]) -> None:
    _check(target, PLACES["many"], AttentionShape(*shape))


@every_gpu
@pytest.mark.parametrize("position", [0, 3, 256, 1070, 2600])
def test_a_long_cache_is_shared(target: Target, position: int) -> None:
    _check(target, (1, position), AttentionShape(2, 1, 32), capacity=2608)


def test_the_rules_are_chosen() -> None:
    function = _function(AttentionShape(6, 2, 64))
    assert schedule(function, host_cpu())[0].endswith("cpu.decode_attention")
    for target in (OPENCL, MALI):
        assert schedule(function, target)[0].endswith("gpu.decode_attention")


def test_it_compiles_for_arm() -> None:
    assert compiles_for_arm(_function(AttentionShape(6, 2, 64)))
