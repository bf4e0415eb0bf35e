"""Documents share rows without seeing each other, and the order of rows can always be told."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from bitfabric.runtime.batch import IGNORE, Batch
from bitfabric.runtime.data import Corpus, Dataset, Order, dropout_seed, pack


def random_corpus(seed: int, documents: int, context: int) -> Corpus:
    """Documents of 2 to context + 1 distinct tokens, of which about two thirds are learned."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, context + 2, documents)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    learned = generator.random(bounds[-1]) < 0.66
    learned[bounds[1:] - 1] = True
    learned[bounds[:-1]] = False
    # Every token differs from all others, so that one seen anywhere tells where it came from.
    return Corpus(np.arange(1, bounds[-1] + 1, dtype=np.int32), learned, bounds)


def brute_force(corpus: Corpus, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one row must be, position by position, from the tokens alone: they are all distinct."""
    context = len(tokens)
    document = np.full(context, -1)
    labels = np.full(context, IGNORE)
    for i, token in enumerate(tokens):
        if token:
            document[i] = np.searchsorted(corpus.bounds, token - 1, side="right") - 1
            if corpus.learned[token]:  # the next token's index is this token's value
                labels[i] = corpus.tokens[token]
    mask = np.zeros((context, context), bool)
    for i in range(context):
        for j in range(i + 1):
            mask[i, j] = i == j or (document[i] == document[j] and document[i] >= 0)
    first = {d: int(np.flatnonzero(document == d)[0]) for d in set(document.tolist()) - {-1}}
    position = np.array([i - first[d] if d >= 0 else 0 for i, d in enumerate(document)])
    return labels, mask, position


def mask_of(starts: np.ndarray) -> np.ndarray:
    """The contract's sentence: i attends to j with starts[i] <= j <= i."""
    context = len(starts)
    return np.array([[starts[i] <= j <= i for j in range(context)] for i in range(context)])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_documents_are_kept_apart_as_a_brute_force_mask_has_it(seed: int, packed: bool) -> None:
    context = 24
    corpus = random_corpus(seed, 23, context)
    dataset = Dataset(corpus, context, 3, packed=packed)
    seen: Counter[int] = Counter()
    for batch in dataset.micro_batches(range(len(dataset))):
        assert batch.tokens.shape == (3, context)
        assert {a.dtype for a in (batch.tokens, batch.labels, batch.starts)} == {np.dtype("i4")}
        for tokens, labels, starts in zip(batch.tokens, batch.labels, batch.starts, strict=True):
            expected, mask, position = brute_force(corpus, tokens)
            np.testing.assert_array_equal(labels, expected)
            np.testing.assert_array_equal(mask_of(starts), mask)
            np.testing.assert_array_equal(np.arange(context) - starts, position)
            seen.update(tokens[tokens > 0].tolist())
    everything = set(corpus.tokens.tolist()) - set(corpus.tokens[corpus.bounds[1:] - 1].tolist())
    assert seen == Counter(everything)


def test_the_counts_are_those_of_the_batches() -> None:
    corpus = random_corpus(1, 40, 32)
    dataset = Dataset(corpus, 32, 2, packed=True)
    rows = [5, 0, 3]
    tokens = sum(int((b.tokens > 0).sum()) for b in dataset.micro_batches(rows))
    labelled = sum(int((b.labels != IGNORE).sum()) for b in dataset.micro_batches(rows))
    assert dataset.count(rows) == (tokens, labelled)


@pytest.mark.parametrize("seed", range(5))
def test_packing_wastes_little_and_is_always_the_same(seed: int) -> None:
    generator = np.random.default_rng(seed)
    context = 256
    lengths = np.minimum(generator.lognormal(4.0, 0.8, 2000).astype(int) + 1, context).tolist()
    rows = pack(lengths, context)
    assert sorted(document for row in rows for document in row) == list(range(2000))
    assert max(sum(lengths[document] for document in row) for row in rows) <= context
    assert len(rows) <= 1.02 * np.ceil(sum(lengths) / context) + 1
    assert pack(lengths, context) == rows


def test_packing_respects_a_shorter_room() -> None:
    corpus = random_corpus(0, 50, 16)
    dataset = Dataset(corpus, 64, 1, packed=True, room=32)
    for batch in dataset.micro_batches(range(len(dataset))):
        assert batch.tokens.shape == (1, 64)
        assert not batch.tokens[:, 32:].any()


def test_every_epoch_sees_every_row_once_in_another_order() -> None:
    order = Order(23, 4, seed=7)
    assert order.steps_per_epoch == 6
    epochs = [
        [row for step in range(6 * e + 1, 6 * e + 7) for row in order.rows_of(step)]
        for e in range(3)
    ]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order.epoch_of(9) == 1.5


def test_any_step_can_be_told_without_those_before() -> None:
    steps = [11, 2, 17, 3, 12]
    walked = Order(23, 4, seed=7)
    by_walking = {step: walked.rows_of(step) for step in range(1, 18)}
    assert [Order(23, 4, seed=7).rows_of(step) for step in steps] == [
        by_walking[step] for step in steps
    ]
    assert Order(23, 4, seed=8).rows_of(1) != by_walking[1]


def test_dropout_seeds_differ_by_seed_step_and_micro_step() -> None:
    seeds = {dropout_seed(s, t, m) for s in range(5) for t in range(20) for m in range(5)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert dropout_seed(1, 2, 3) == dropout_seed(1, 2, 3)


def test_padding_attends_to_itself_alone() -> None:
    batch = Batch.empty(2, 5)
    assert (batch.labels == IGNORE).all()
    assert mask_of(batch.starts[0]).sum() == 5
