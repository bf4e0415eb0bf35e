"""Prefill and decode against torch's full forward pass, and against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitfabric.runtime import InferenceEngine, inference
from bitfabric.targets import FabricError

from ..reference.torch_bitnet import TorchBitNet, random_adapter, steady_tokens
from .conftest import CASES, Compiled, compile_tiny

LENGTH = 10


def _reference(tiny: Compiled, adapter=None, scale: float = 1.0):
    reference = TorchBitNet(tiny.model, adapter, scale)
    tokens = steady_tokens(reference, (1, LENGTH), margin=2e-5)
    return tokens[0], reference.logits(tokens)[0].detach().numpy()


def test_prefill_and_decode_equal_torch(tiny: Compiled) -> None:
    tokens, logits = _reference(tiny)
    engine = InferenceEngine(tiny.bundle, capacity=LENGTH)
    np.testing.assert_allclose(engine.prefill(tokens[:6]), logits[5], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(engine.prefill(tokens[6:8]), logits[7], rtol=1e-4, atol=1e-4)
    for i in range(8, LENGTH):
        np.testing.assert_allclose(engine.decode(tokens[i]), logits[i], rtol=1e-4, atol=1e-4)
    assert engine.position == LENGTH
    engine.reset()
    np.testing.assert_allclose(engine.prefill(tokens), logits[-1], rtol=1e-4, atol=1e-4)


def test_every_token_is_scored_as_torch_scores_it(
    tiny: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, logits = _reference(tiny)
    monkeypatch.setattr(inference, "CHUNK", 4)  # Three pieces, the last one short.
    found = InferenceEngine(tiny.bundle, capacity=LENGTH).score(tokens)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)


def test_adapters_add_up_with_their_weights(tiny: Compiled) -> None:
    lora = tiny.options.lora
    one = random_adapter(tiny.model.config, rank=2, modules=lora.modules, seed=1)
    two = random_adapter(tiny.model.config, rank=5, modules=lora.modules, seed=2)
    # In torch: one adapter of rank 7 whose product is the weighted sum.
    both = {}
    for name in one:
        axis = 0 if name.endswith("lora_A") else 1
        factors = (1.0, 1.0) if axis == 0 else (0.5, 2.0)
        both[name] = np.concatenate([factors[0] * one[name], factors[1] * two[name]], axis=axis)
    tokens, logits = _reference(tiny, both, 1.0)
    engine = InferenceEngine(tiny.bundle, [(one, 0.5), (two, 2.0)], capacity=64)
    np.testing.assert_allclose(engine.prefill(tokens), logits[-1], rtol=1e-4, atol=2e-4)


def test_sequences_of_a_batch_do_not_see_each_other(tiny: Compiled) -> None:
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 61, n) for n in (3, 7, 5)]
    after = generator.integers(0, 61, 3)
    batched = InferenceEngine(tiny.bundle, capacity=32, batch=3)
    single = InferenceEngine(tiny.bundle, capacity=32)
    for i, prompt in enumerate(prompts):
        batched.prefill(prompt, sequence=i)
    logits = batched.decode_batch(after)
    for i, prompt in enumerate(prompts):
        single.reset()
        single.prefill(prompt)
        np.testing.assert_allclose(logits[i], single.decode(after[i]), rtol=1e-5, atol=1e-5)


def test_a_new_question_reads_only_what_follows_the_common_beginning(tiny: Compiled) -> None:
    tokens, logits = _reference(tiny)
    engine = InferenceEngine(tiny.bundle, capacity=32)
    engine.prefill([*tokens[:6], *tokens[:3]])
    engine.decode(tokens[0])
    engine.rewind(6)
    np.testing.assert_allclose(engine.prefill(tokens[6:]), logits[-1], rtol=1e-4, atol=1e-4)
    assert engine.position == LENGTH
    with pytest.raises(FabricError, match="has 10 tokens"):
        engine.rewind(11)


@pytest.mark.parametrize(("kv_cache", "bound"), [("f16", 0.03), ("int8", 0.3)])
@pytest.mark.slow
def test_a_smaller_cache_changes_logits_little(tmp_path: Path, kv_cache: str, bound: float) -> None:
    """Prompt, token and batch alike; the tiny model's own 8-bit steps enlarge what is rounded."""
    tiny = compile_tiny(tmp_path, CASES["grouped-query-relu2"], kv_cache=kv_cache)
    tokens, logits = _reference(tiny)
    engine = InferenceEngine(tiny.bundle, capacity=LENGTH, batch=2)
    found = [*engine.score(tokens[:7])]
    found += [engine.decode(token) for token in tokens[7:]]
    error = np.abs(np.array(found) - logits).max(axis=1) / np.abs(logits).max()
    assert error[1:].max() < bound
    assert error.max() > 1e-6, "the cache is exact, so it is no smaller one"
    for token in tokens:
        engine.prefill([token], sequence=1)
    other = engine.decode_batch([3, 3])
    np.testing.assert_allclose(other[0], other[1], atol=bound * np.abs(logits).max())


def test_a_full_cache_and_an_empty_prompt_are_refused(tiny: Compiled) -> None:
    engine = InferenceEngine(tiny.bundle, capacity=16)
    engine.prefill([1] * 16)
    with pytest.raises(FabricError, match="room for 16"):
        engine.decode(1)
    with pytest.raises(FabricError, match="empty"):
        engine.prefill([])
