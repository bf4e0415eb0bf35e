"""Tokens are drawn from the distribution that the options describe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bitfabric.runtime.sampling import Sampler, SamplingError, SamplingOptions, nucleus


def random_logits(seed: int, size: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def probabilities(logits: np.ndarray, options: SamplingOptions) -> np.ndarray:
    tokens, weights = nucleus(logits, options)
    dense = np.zeros(len(logits))
    dense[tokens] = weights / weights.sum()
    return dense


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_the_distribution_is_that_of_transformers(
    temperature: float, top_k: int, top_p: float
) -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = random_logits(int(100 * top_p) + top_k)
    scores = process.TemperatureLogitsWarper(temperature)(None, torch.tensor(logits)[None])
    if top_k:
        scores = process.TopKLogitsWarper(top_k)(None, scores)
    scores = process.TopPLogitsWarper(top_p)(None, scores)
    expected = torch.softmax(scores[0].double(), -1).numpy()
    options = SamplingOptions(temperature, top_k, top_p)
    np.testing.assert_allclose(probabilities(logits, options), expected, atol=1e-6)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    seen = [3, 8, 8, 21]
    for seed in range(20):
        logits = random_logits(seed)
        reference = process.RepetitionPenaltyLogitsProcessor(1.8)
        expected = reference(torch.tensor([seen]), torch.tensor(logits.copy())[None])[0]
        drawn = Sampler(SamplingOptions(repetition_penalty=1.8), seen).draw(logits)
        assert drawn == int(expected.argmax())


def test_what_was_drawn_counts_as_seen() -> None:
    logits = np.array([2.0, 1.9, 1.5, -1.0], np.float32)
    sampler = Sampler(SamplingOptions(repetition_penalty=1.5))
    assert [sampler.draw(logits) for _ in range(3)] == [0, 1, 2]
    np.testing.assert_array_equal(logits, np.array([2.0, 1.9, 1.5, -1.0], np.float32))


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    options = SamplingOptions(temperature=1.0, top_k=5, top_p=0.95, seed=1)
    logits = random_logits(2)
    expected = probabilities(logits, options)
    sampler = Sampler(options)
    count = 20_000
    counts = np.bincount([sampler.draw(logits) for _ in range(count)], minlength=len(logits))
    # Five standard deviations of a binomial.
    spread = 5 * np.sqrt(expected * (1 - expected) / count) + 1e-12
    assert (np.abs(counts / count - expected) <= spread).all()


def test_the_seed_fixes_every_draw() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.5, seed=seed))
        return [sampler.draw(random_logits(step)) for step in range(50)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_greedy_takes_the_likeliest() -> None:
    logits = random_logits(0)
    assert Sampler(SamplingOptions(top_k=3, top_p=0.2)).draw(logits) == int(logits.argmax())


def test_ties_at_the_border_of_top_k_go_to_the_smaller_token() -> None:
    tokens, _ = nucleus(np.zeros(10, np.float32), SamplingOptions(1.0, top_p=0.35))
    assert tokens.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_an_impossible_option_is_refused_by_name(values: dict[str, Any]) -> None:
    option = "--" + next(iter(values)).replace("_", "-")
    with pytest.raises(SamplingError, match=option):
        Sampler(SamplingOptions(**values))
