"""Caches of float16 and int8 in words: the nearest is stored, and attention is over what is stored.

On every kind of target, against float64 numpy.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from bitfabric.models.kernels import (
    KV_CACHES,
    AttentionShape,
    cached_attention,
    decode_attention,
    grow_cache,
)
from bitfabric.targets import Target
from bitfabric.targets.cpu import host_cpu
from tvm import relax, tirx

from .attention_reference import Cache, rope_table
from .kernel_harness import compiles_for_arm, every_gpu, every_target, prim_func, run
from .test_cpu_cached_attention import F32, I32, SEQUENCES
from .test_gpu_cached_attention import CASES

CAPACITY = 304
every_cache = pytest.mark.parametrize("kv_cache", ["f16", "int8"])
WIDTHS = {64: AttentionShape(6, 2, 64), 80: AttentionShape(2, 1, 80), 16: AttentionShape(4, 2, 16)}


@lru_cache
def _function(kernel: str, shape: AttentionShape, kv_cache: str) -> tirx.PrimFunc:
    one = kernel == "decode_attention"
    n, m, b = (tirx.Var(name, "int64") for name in ("n", "m", "b"))
    tokens = 1 if one else n
    types = [((tokens, shape.width), F32), ((tokens,), I32), ((tokens,), I32)]
    types.append(((m, shape.head_dim), F32))
    for kind in KV_CACHES[kv_cache].fields(shape, b, m).values():
        types.append((list(kind.shape), str(kind.dtype)))
    attention = decode_attention if one else cached_attention

    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        return bb.emit(relax.Tuple(list(attention(bb, *v[:4], v[4:], shape))))

    return prim_func(kernel, emit, types)


def _stored(keys: np.ndarray, values: np.ndarray, kv_cache: str) -> list[np.ndarray]:
    """Return a float64 cache as it is stored: keys ``(S, H, W, M)``, values ``(S, H, M, W)``."""
    found, scales = [], []
    for array, axis in ((keys, 2), (values, 3)):
        array = array.astype(F32)
        if kv_cache == "f16":
            elements = np.where(np.abs(array) < 2.0**-14, 0, array).astype("float16")
        else:
            top = np.maximum(np.abs(array).max(axis, keepdims=True), np.float32(127e-12))
            elements = np.rint(array * (np.float32(127) / top)).astype("int8")
            scales.append((top / np.float32(127)).squeeze(axis))
        words = np.ascontiguousarray(np.moveaxis(elements, axis, -1)).view(I32)
        found.append(np.ascontiguousarray(np.moveaxis(words, -1, axis)))
    return [*found, *scales]


def _read(cache: list[np.ndarray], kv_cache: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the float64 keys and values that a stored cache stands for."""
    dtype = {"f16": "float16", "int8": "int8"}[kv_cache]
    found = []
    for words, axis in zip(cache[:2], (2, 3), strict=True):
        elements = np.ascontiguousarray(np.moveaxis(words, axis, -1)).view(dtype)
        found.append(np.moveaxis(elements, -1, axis).astype("float64"))
    if kv_cache == "int8":
        found = [found[0] * cache[2][:, :, None], found[1] * cache[3][..., None]]
    return found[0], found[1]


class _Setting:
    """A cache with what came before some new tokens, and the tokens."""

    def __init__(
        self, shape: AttentionShape, sequence: list[int], position: list[int], kv_cache: str
    ) -> None:
        rng = np.random.default_rng(0)
        tokens = [np.array(a, I32) for a in (sequence, position)]
        self.kv_cache, rope = kv_cache, rope_table(CAPACITY, shape.head_dim).astype(F32)
        self.exact = Cache(SEQUENCES, shape.kv_heads, shape.head_dim, CAPACITY)
        self.exact.keys[:], self.exact.values[:] = 0, 0
        for s in set(sequence):
            before = np.arange(tokens[1][tokens[0] == s].min(), dtype=I32)
            past = rng.standard_normal((len(before), shape.width)).astype(F32)
            self.exact.append(past, np.full(len(before), s), before, rope)
        qkv = rng.standard_normal((len(sequence), shape.width)).astype(F32)
        self.new = [qkv, *tokens, rope]
        self.before = _stored(self.exact.keys, self.exact.values, kv_cache)
        self.exact.append(*self.new)

    def check_stored(self, found: list[np.ndarray]) -> None:
        exact = (self.exact.keys, self.exact.values)
        for values, wanted in zip(_read(found, self.kv_cache), exact, strict=True):
            # Half a step of 127, or of a mantissa of 11 bits, of values of about four at most.
            assert np.abs(values - wanted).max() < (0.021 if self.kv_cache == "int8" else 2e-3)
        wanted = _stored(*exact, self.kv_cache)
        elements = "int8" if self.kv_cache == "int8" else "int16"
        for i in range(2):
            # A value on the border of two numbers may become either.
            assert np.mean(found[i].view(elements) != wanted[i].view(elements)) < 1e-3

    def attended(self, found: list[np.ndarray]) -> np.ndarray:
        """Return the attention over what is stored."""
        stored = Cache(*(self.exact.keys.shape[i] for i in (0, 1, 2, 3)))
        stored.keys[:], stored.values[:] = _read(found, self.kv_cache)
        return stored.attend(*self.new)


def _check(
    target: Target, kv_cache: str, case: str, head_dim: int = 64, plain: bool = False
) -> None:
    shape = WIDTHS[head_dim]
    setting = _Setting(shape, *CASES[case], kv_cache)
    function = _function("append_kv", shape, kv_cache)
    appended = run(function, target, [*setting.new, *setting.before], plain=plain)[4:]
    setting.check_stored(appended)
    expected = setting.attended(appended)
    function = _function("cached_attention", shape, kv_cache)
    (y,) = run(function, target, [*setting.new, *appended], [expected.shape], plain=plain)
    np.testing.assert_allclose(y, expected, atol=3e-6)


def _check_one(
    target: Target, kv_cache: str, position: int, head_dim: int = 64, plain: bool = False
) -> None:
    shape = WIDTHS[head_dim]
    setting = _Setting(shape, [1], [position], kv_cache)
    out = np.full((1, shape.heads * head_dim), np.nan, F32)
    function = _function("decode_attention", shape, kv_cache)
    found = run(function, target, [*setting.new, *setting.before, out], plain=plain)
    *cache, y = found[4:]
    setting.check_stored(cache)
    np.testing.assert_allclose(y, setting.attended(cache), atol=3e-6)


@every_target
@every_cache
def test_append_and_attend(target: Target, kv_cache: str) -> None:
    for case in ("one", "first", "prefill", "continued", "batch", "mixed"):
        _check(target, kv_cache, case)
    for position in (0, 200):
        _check_one(target, kv_cache, position)


@every_gpu
@every_cache
def test_on_graphics_processors(target: Target, kv_cache: str) -> None:
    for case in ("first", "long", "prefill", "mixed", "prompt"):
        _check(target, kv_cache, case)


@every_gpu
@every_cache
def test_a_token_on_graphics_processors(target: Target, kv_cache: str) -> None:
    for position in (0, 3, 256, 303):
        _check_one(target, kv_cache, position)


@pytest.mark.slow
@every_gpu
@every_cache
@pytest.mark.parametrize("head_dim", [16, 80])
def test_heads_of_other_widths(target: Target, kv_cache: str, head_dim: int) -> None:
    _check_one(target, kv_cache, 77, head_dim)
    _check(target, kv_cache, "prefill", head_dim)


def _check_copy(target: Target, kv_cache: str, head_dim: int) -> None:
    shape, form = WIDTHS[head_dim], KV_CACHES[kv_cache]
    b, m, r = (tirx.Var(name, "int64") for name in "bmr")
    fields = [form.fields(shape, b, extent).values() for extent in (m, r)]
    types = [(list(kind.shape), str(kind.dtype)) for part in fields for kind in part]

    def emit(bb: relax.BlockBuilder, *v: relax.Var) -> relax.Var:
        count = len(v) // 2
        return grow_cache(bb, v[:count], v[count:], form, shape)

    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(-(2**31), 2**31 - 1, [int(e) for e in kind.shape], I32).view(str(kind.dtype))
        for room in (48, 80)
        for kind in form.fields(shape, 2, room).values()
    ]
    copied = run(prim_func("copy_cache", emit, types), target, arrays)
    count = len(arrays) // 2
    for old, new, before in zip(arrays[:count], copied[count:], arrays[count:], strict=True):
        axis = next(i for i in range(old.ndim) if old.shape[i] != new.shape[i])
        first, rest = np.split(new.view(I32), [48], axis)
        np.testing.assert_array_equal(first, old.view(I32))
        np.testing.assert_array_equal(rest, np.split(before.view(I32), [48], axis)[1])


@every_target
def test_a_larger_cache_takes_over_what_a_smaller_one_holds(target: Target) -> None:
    _check_copy(target, "int8", 64)


@every_gpu
@pytest.mark.parametrize(("kv_cache", "head_dim"), [("int8", 64), ("int8", 80), ("f32", 16)])
def test_a_larger_cache_on_graphics_processors(
    target: Target, kv_cache: str, head_dim: int
) -> None:
    _check_copy(target, kv_cache, head_dim)


@every_cache
def test_the_meaning(kv_cache: str) -> None:
    _check(host_cpu(), kv_cache, "mixed", head_dim=16, plain=True)
    _check_one(host_cpu(), kv_cache, 69, head_dim=16, plain=True)


@every_cache
@pytest.mark.slow
def test_they_compile_for_arm(kv_cache: str) -> None:
    for kernel in ("cached_attention", "decode_attention"):
        assert compiles_for_arm(_function(kernel, WIDTHS[64], kv_cache))
