"""Attention of prompts over the cache on CUDA's matrix units, emulated, agrees with numpy."""

from __future__ import annotations

import numpy as np
import pytest
from bitfabric.models.kernels import AttentionShape
from bitfabric.schedules import schedule
from bitfabric.schedules.decisions import deciding
from bitfabric.targets import get_target

from ..compiler.cuda_emulation import Emulation, missing_compiler
from .attention_reference import Cache, rope_table
from .test_cpu_cached_attention import F32, I32, SEQUENCES
from .test_gpu_cached_attention import _function as exact
from .test_small_caches import _function as small
from .test_small_caches import _read, _stored

CUDA = get_target("cuda-sm90")
CAPACITY = 176
NAN = 0x7E007E00
"""A word of two 16-bit floats that are no numbers."""
# Sequences and positions of new tokens, more than take small blocks.
CASES = {
    "first": ([1] * 70, [*range(70)]),
    "continued": ([2] * 100, [*range(61, 161)]),
    # A block of two sequences between blocks of one, and a last one of few tokens.
    "several": ([0] * 90 + [2] * 105, [*range(40, 130), *range(105)]),
    # Whatever comes first, each token sees what its own position lets it.
    "turned": ([0] * 66, [*range(65, -1, -1)]),
}
# Times 16 tokens of a work-group, subgroups that share them, and keys of a block.
LAYOUTS = [(4, 2, 64), (2, 2, 32), (4, 1, 16), (2, 1, 64)]
needs_emulation = pytest.mark.skipif(bool(missing_compiler()), reason=missing_compiler())


def _check(case: str, shape: AttentionShape, kv_cache: str = "f32", layout: tuple = ()) -> None:
    sequence, position = (np.array(tokens, I32) for tokens in CASES[case])
    rng = np.random.default_rng(0)
    rope = rope_table(CAPACITY, shape.head_dim).astype(F32)
    cache = Cache(SEQUENCES, shape.kv_heads, shape.head_dim, CAPACITY)
    for s in set(sequence.tolist()):
        before = np.arange(position[sequence == s].min(), dtype=I32)
        past = rng.standard_normal((len(before), shape.width)).astype(F32)
        cache.append(past, np.full(len(before), s), before, rope)
    qkv = rng.standard_normal((len(sequence), shape.width)).astype(F32)
    new = [qkv, sequence, position, rope]
    cache.append(*new)
    if kv_cache == "f32":
        stored, function = _as_floats(cache), exact("cached_attention", shape, False)
    else:
        stored, function = _as_words(cache, kv_cache), small("cached_attention", shape, kv_cache)
    expected = cache.attend(*new)

    answers = {"tokens of a prompt": layout[:2], "keys": layout[2]} if layout else {}
    with deciding(answers) as asked:
        _, scheduled = schedule(function, CUDA)
    assert asked.values.items() >= answers.items()
    assert "tokens of a prompt" in asked.values
    y = np.full(expected.shape, np.nan, F32)
    Emulation(scheduled, CUDA)(*new, *stored, y)
    np.testing.assert_allclose(y, expected, atol=3e-6)


def _as_floats(cache: Cache) -> list[np.ndarray]:
    """Return a cache as float32, which it has from now on."""
    stored = [cache.keys.astype(F32), cache.values.astype(F32)]
    cache.keys[:], cache.values[:] = stored
    return stored


def _as_words(cache: Cache, kv_cache: str) -> list[np.ndarray]:
    """Return a cache in words, from which it has its numbers from now on.

    What was not written has none.
    """
    unwritten = np.isnan(cache.keys[:, :, 0])
    stored = _stored(np.nan_to_num(cache.keys), np.nan_to_num(cache.values), kv_cache)
    cache.keys[:], cache.values[:] = _read(stored, kv_cache)
    stored[0].swapaxes(2, 3)[unwritten] = NAN
    stored[1][unwritten] = NAN
    for scales in stored[2:]:
        scales[unwritten] = np.nan
    return stored


@needs_emulation
@pytest.mark.parametrize("case", ["continued", "several"])
def test_prompts(case: str) -> None:
    _check(case, AttentionShape(2, 1, 32))


@needs_emulation
@pytest.mark.slow
@pytest.mark.parametrize("case", ["first", "turned"])
def test_other_prompts(case: str) -> None:
    _check(case, AttentionShape(4, 2, 32))


@needs_emulation
@pytest.mark.parametrize("kv_cache", ["f16", "int8"])
def test_small_caches(kv_cache: str) -> None:
    _check("continued", AttentionShape(2, 1, 32), kv_cache)


@needs_emulation
@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [16, 48, 80, 128])
@pytest.mark.parametrize("kv_cache", ["f32", "f16", "int8"])
def test_other_heads(kv_cache: str, head_dim: int) -> None:
    _check("continued", AttentionShape(1, 1, head_dim), kv_cache)


@needs_emulation
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kv_cache", ["f32", "f16"])
def test_layouts(kv_cache: str, layout: tuple) -> None:
    _check("several", AttentionShape(1, 1, 32), kv_cache, layout)


def test_odd_heads_have_blocks_of_plain_products() -> None:
    for head_dim in (44, 144):
        with deciding({}) as asked:
            schedule(exact("cached_attention", AttentionShape(1, 1, head_dim), False), CUDA)
        assert "tokens of a prompt" not in asked.values
