"""Caches of float16 and int8: the nearest is stored, and attention is over what is stored."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from bitfabric.models.kernels import AttentionShape, cache_types, cached_attention
from bitfabric.targets import Target
from bitfabric.targets.cpu import host_cpu
from tvm import relax, tirx

from .attention_reference import Cache, rope_table
from .kernel_harness import compiles_for_arm, every_target, prim_func, run
from .test_cpu_cached_attention import CAPACITY, F32, I32, SEQUENCES, _tokens

SHAPE = AttentionShape(6, 2, 32)
every_cache = pytest.mark.parametrize("kv_cache", ["f16", "int8"])


@lru_cache
def _function(kernel: str, kv_cache: str) -> tirx.PrimFunc:
    n, m, b = (tirx.Var(name, "int64") for name in ("n", "m", "b"))
    types = [((n, SHAPE.width), F32), ((n,), I32), ((n,), I32), ((m, SHAPE.head_dim), F32)]
    for kind in cache_types(SHAPE, b, m, kv_cache).values():
        types.append((list(kind.shape), str(kind.dtype)))

    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bb.emit(relax.Tuple(list(cached_attention(bb, *v[:6], SHAPE, *v[6:]))))

    return prim_func(kernel, emit, types)


def _stored(keys: np.ndarray, values: np.ndarray, kv_cache: str) -> list[np.ndarray]:
    """Return a float64 cache as it is stored: keys ``(S, H, D, M)``, values ``(S, H, M, D)``."""
    if kv_cache == "f16":
        return [keys.astype(F32).astype("float16"), values.astype(F32).astype("float16")]
    found, scales = [], []
    for array, axis in ((keys, 2), (values, 3)):
        top = np.maximum(np.abs(array.astype(F32)).max(axis, keepdims=True), np.float32(127e-12))
        found.append(np.rint(array.astype(F32) * (np.float32(127) / top)).astype("int8"))
        scales.append((top / np.float32(127)).squeeze(axis))
    return [*found, *scales]


def _read(cache: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the float64 keys and values that a stored cache stands for."""
    keys, values, *scales = (part.astype("float64") for part in cache)
    if scales:
        keys, values = keys * scales[0][:, :, None], values * scales[1][..., None]
    return keys, values


def _check(target: Target, kv_cache: str, case: str, plain: bool = False) -> None:
    sequence, position = (np.array(a, I32) for a in _tokens(case))
    rng = np.random.default_rng(0)
    rope = rope_table(CAPACITY, SHAPE.head_dim).astype(F32)
    cache = Cache(SEQUENCES, SHAPE.kv_heads, SHAPE.head_dim, CAPACITY)
    cache.keys[:], cache.values[:] = 0, 0
    for s in set(sequence.tolist()):
        before = np.arange(position[sequence == s].min(), dtype=I32)
        past = rng.standard_normal((len(before), SHAPE.width)).astype(F32)
        cache.append(past, np.full(len(before), s), before, rope)
    qkv = rng.standard_normal((len(sequence), SHAPE.width)).astype(F32)
    inputs = [qkv, sequence, position, rope]
    stored = _stored(cache.keys, cache.values, kv_cache)
    cache.append(qkv, sequence, position, rope)
    appended = run(_function("append_kv", kv_cache), target, [*inputs, *stored], plain=plain)[4:]
    for found, exact in zip(_read(appended), (cache.keys, cache.values), strict=True):
        # Half a step of 127, or of a mantissa of 11 bits, of values of about four at most.
        assert np.abs(found - exact).max() < (0.021 if kv_cache == "int8" else 2e-3)
    wanted = _stored(cache.keys, cache.values, kv_cache)
    if kv_cache == "int8":
        # A value on the border of two integers may become either.
        assert np.mean(appended[0] != wanted[0]) < 1e-3
    cache.keys[:], cache.values[:] = _read(appended)
    expected = cache.attend(qkv, sequence, position, rope)
    function = _function("cached_attention", kv_cache)
    (y,) = run(function, target, [*inputs, *appended], [expected.shape], plain=plain)
    np.testing.assert_allclose(y, expected, atol=3e-6)


@every_target
@every_cache
def test_append_and_attend(target: Target, kv_cache: str) -> None:
    for case in ("one", "first", "prefill", "continued", "batch", "mixed"):
        _check(target, kv_cache, case)


@every_cache
def test_the_meaning(kv_cache: str) -> None:
    _check(host_cpu(), kv_cache, "mixed", plain=True)


@every_cache
def test_they_compile_for_arm(kv_cache: str) -> None:
    assert compiles_for_arm(_function("cached_attention", kv_cache))
