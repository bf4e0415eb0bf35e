"""The search comes nearer to the best of a known space than chance, and tries nothing twice."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest
from bitfabric.compiler.tuning.cost_model import CostModel, Trial, features_of
from bitfabric.compiler.tuning.search import Search, Values, identity
from bitfabric.schedules.decisions import Asked, Supply, choose, deciding
from bitfabric.targets import host_cpu

TILES = tuple((h, w) for h in (1, 2, 4, 6, 8, 12) for w in (1, 2, 3, 4, 6, 8))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("BITFABRIC_DATA", str(tmp_path))
    return tmp_path


def rule(answers: Values | Supply) -> Asked:
    """Ask what a rule might: some decisions matter, some only together, one only for some."""
    with deciding(answers) as asked:
        choose("tile", TILES, (4, 2))
        choose("unroll", (1, 2, 4, 8), 1)
        choose("chunk", tuple(2**n for n in range(4, 14)), 64)
        if choose("kind", ("plain", "packed"), "plain") == "packed":
            choose("ahead", (0, 1, 2, 4), 0)
    return asked


def seconds(values: Values) -> float:
    """Return the time of a candidate: best is 6x4, unrolled twice, by 512, packed, 2 ahead."""
    (height, width), unroll, chunk = values["tile"], values["unroll"], values["chunk"]
    registers = height * width + width
    time = 1.0 + abs(math.log2(registers / 28)) * (2 if registers > 31 else 0.5)
    time += 0.2 * abs(height - 6) / 6 + 0.15 * abs(math.log2(unroll / 2))
    time += 0.1 * abs(math.log2(chunk / 512))
    return time - (0.2 - 0.04 * abs(values["ahead"] - 2) if values["kind"] == "packed" else 0)


BEST = {"tile": (6, 4), "unroll": 2, "chunk": 512, "kind": "packed", "ahead": 2}
DEFAULT = seconds(rule({}).values)


def searched(trials: int, seed: int, model: CostModel) -> tuple[float, Search]:
    """Search for some trials; gives how far from the best time the best found is."""
    history: list[Trial] = []
    search = Search(
        asked=rule({}),
        features=lambda values: features_of(values, [64, 128], host_cpu()),
        model=model,
        rng=random.Random(seed),
    )
    while search.trials < trials:
        results = []
        for wanted in search.propose(4):
            asked = rule(wanted)
            search.learn(asked)
            values = dict(asked.values)
            if search.is_new(values) and values not in [found for found, _ in results]:
                results.append((values, seconds(values) / DEFAULT))
                history.append(Trial("key", search.features(values), results[-1][1]))
        search.tell(results)
        model.fit(history)
    return search.best[1] * DEFAULT / seconds(BEST), search


def by_chance(trials: int, seed: int) -> float:
    """Return the same of as many random candidates."""
    rng = random.Random(seed)
    found = [rule(lambda choice: rng.choice(choice.options)).values for _ in range(trials)]
    return min(seconds(values) for values in found) / seconds(BEST)


def test_it_comes_nearer_to_the_optimum_than_chance() -> None:
    assert all(
        seconds(BEST) <= seconds({**BEST, "tile": tile, "chunk": chunk})
        for tile in TILES
        for chunk in (64, 256, 512, 1024)
    )
    found = [searched(60, seed, CostModel("toy"))[0] for seed in range(2)]
    chance = [by_chance(60, seed) for seed in range(25)]
    assert max(found) < 1.05
    assert statistics.mean(found) - 1 < (statistics.median(chance) - 1) / 2


def test_nothing_is_tried_twice_and_a_small_space_ends() -> None:
    def small() -> Asked:
        with deciding({}) as asked:
            choose("a", (1, 2, 3), 1)
            choose("b", (1, 2), 1)
        return asked

    search = Search(small(), lambda v: {}, CostModel("toy"), random.Random(0))
    seen = []
    while batch := search.propose(4):
        seen += [identity(values) for values in batch]
        search.tell([(values, 1.0) for values in batch])
    assert len(seen) == len(set(seen)) == search.size - 1 == 5
    assert search.expected_gain == 0.0


def test_what_turns_out_to_be_another_candidate_is_not_proposed_again() -> None:
    """A rule that does not ask for a decision makes several candidates one."""
    with deciding({}) as asked:
        choose("a", (1, 2), 1)
        choose("b", (1, 2), 1)
    search = Search(asked, lambda v: {}, CostModel("toy"), random.Random(0))
    while batch := search.propose(2):
        search.seen.update(identity(values) for values in batch)
        search.tell([])
    assert search.trials == 0
    assert len(search.seen) == search.size - 1
    assert search.expected_gain == 0.0


def test_what_is_in_vain_is_expected_to_gain_less() -> None:
    search = Search(rule({}), lambda v: {}, CostModel("toy"), random.Random(0))
    hope = [search.expected_gain]
    for ratio in (1.2, 1.1, 0.5, 0.5):
        search.tell([(search.propose(1)[0], ratio)])
        hope.append(search.expected_gain)
    assert hope[0] > hope[1] > hope[2]
    assert hope[3] > hope[4]


def test_other_shapes_decisions_come_first_where_they_are_valid() -> None:
    search = Search(rule({}), lambda v: {}, CostModel("toy"), random.Random(0))
    search.seeds = [{"tile": (6, 4), "unroll": 3, "gone": 1}]
    assert search.propose(2)[0] == {"tile": (6, 4), "unroll": 1, "chunk": 64, "kind": "plain"}


def test_a_saved_model_predicts_alike_in_the_next_run() -> None:
    model = CostModel("toy")
    _, search = searched(40, 0, model)
    model.save()
    again = CostModel("toy")
    again.load()
    candidates = [search.features(dict(values)) for values in search.tried]
    assert again.is_trained
    assert list(again.predict(candidates)) == list(model.predict(candidates))
    model.path.write_text("{")
    damaged = CostModel("toy")
    damaged.load()
    assert not damaged.is_trained
