"""The search through one kernel's decisions: random at first, then from the best, ranked by model.

New candidates are changes of the fastest so far, mixtures of two of them, what was fastest for
other shapes, and random ones; of many the cost model picks those to be measured. A rule is run for
the picked ones only, and may then ask for decisions that it did not ask for before: they join the
space.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from ...schedules.decisions import Asked, Choice, Value
from .cost_model import CostModel

POPULATION = 8
"""The fastest candidates, whose changes are proposed."""
PROPOSALS = 256
"""Candidates among which the model chooses."""
RANDOM_SHARE = 0.15
"""Share of measured candidates that are not the model's choice."""
IN_VAIN = 256
"""Proposals in a row that were all tried before, after which a space counts as searched."""
OPTIMISM = 0.12
"""Improvement expected where nothing is known yet; each batch in vain takes a quarter of it."""

Values = dict[str, Value]
Identity = tuple[tuple[str, Value], ...]


def identity(values: Values) -> Identity:
    """Return a candidate as something to compare and to look up."""
    return tuple(sorted(values.items(), key=lambda item: item[0]))


class Ledger:
    """What was tried of one kernel, and what may still be gained.

    Parameters
    ----------
    default : dict
        The decisions of the default schedule.

    Attributes
    ----------
    tried : dict
        Ratio of time to the default's for each measured candidate, infinite for failures.
    seen : set
        Candidates that need no measuring: they turned out to be others.
    """

    def __init__(self, default: Values) -> None:
        self.tried: dict[Identity, float] = {identity(default): 1.0}
        self.seen: set[Identity] = set()
        self._in_vain = 0
        self._exhausted = False

    @property
    def best(self) -> tuple[Values, float]:
        """The fastest candidate so far and its ratio; the default's is 1."""
        found, ratio = min(self.tried.items(), key=lambda item: item[1])
        return dict(found), ratio

    @property
    def trials(self) -> int:
        """Candidates that were measured."""
        return len(self.tried) - 1

    def is_new(self, values: Values) -> bool:
        """Tell whether a candidate was neither measured yet nor found to be another."""
        found = identity(values)
        return found not in self.tried and found not in self.seen

    def tell(self, results: list[tuple[Values, float]]) -> None:
        """Note the ratios of a batch of candidates, infinite where one failed."""
        before = self.best[1]
        for values, ratio in results:
            self.tried[identity(values)] = ratio
        self._in_vain = 0 if self.best[1] < 0.99 * before else self._in_vain + 1

    @property
    def expected_gain(self) -> float:
        """By how much of the default's time the best may still improve."""
        return 0.0 if self._exhausted else OPTIMISM * self.best[1] * 0.75**self._in_vain


@dataclass
class Search(Ledger):
    """The search through one space of listed values.

    Attributes
    ----------
    asked : Asked
        What the rule asks for where everything is left at its default.
    features : callable
        Returns a candidate's features for the model.
    model : CostModel
        Of the computation.
    rng : random.Random
        Decides what is random.
    seeds : list of dict
        Candidates to begin with, such as those that were best for other shapes.
    """

    asked: Asked
    features: Callable[[Values], dict[str, float]]
    model: CostModel
    rng: random.Random
    seeds: list[Values] = field(default_factory=list)
    _choices: dict[str, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.asked.values)
        self.learn(self.asked)

    def learn(self, asked: Asked) -> None:
        """Take what a rule asked for into the space."""
        self._choices.update(asked.choices)

    @property
    def size(self) -> int:
        """Candidates in the space, as far as it is known."""
        product = 1
        for choice in self._choices.values():
            product *= len(choice.options)
        return product

    def knows(self, values: Values) -> bool:
        """Tell whether a candidate of an earlier run is one of this space."""
        return values.keys() == self.asked.values.keys()

    def propose(self, count: int) -> list[Values]:
        """Return up to `count` new candidates, the most promising first; none at the end."""
        chosen: dict[Identity, Values] = {}
        while self.seeds and len(chosen) < count:
            self._offer(chosen, self._changed(self.seeds.pop(0), 0.0))
        pool: dict[Identity, Values] = {}
        misses = 0
        while len(pool) < PROPOSALS and misses < IN_VAIN:
            before = len(pool)
            self._offer(pool, self._proposal())
            misses = misses + 1 if len(pool) == before else 0
        ranked = self._ranked(list(pool.values()))
        self._exhausted = not ranked and not chosen
        while len(chosen) < count and ranked:
            at = self.rng.randrange(len(ranked)) if self.rng.random() < RANDOM_SHARE else 0
            self._offer(chosen, ranked.pop(at))
        return list(chosen.values())

    def _ranked(self, candidates: list[Values]) -> list[Values]:
        """Return candidates by their predicted time; as they come where nothing is known."""
        if not self.model.is_trained:
            return candidates
        scores = self.model.predict([self.features(values) for values in candidates])
        order = sorted(range(len(candidates)), key=lambda i: float(scores[i]))
        return [candidates[i] for i in order]

    def _offer(self, to: dict[Identity, Values], values: Values) -> None:
        if self.is_new(values):
            to[identity(values)] = values

    def _proposal(self) -> Values:
        ordered = sorted(self.tried.items(), key=lambda item: item[1])[:POPULATION]
        parents = [dict(found) for found, _ in ordered]
        # The faster of two is the parent.
        parent = parents[min(self.rng.randrange(len(parents)) for _ in range(2))]
        draw = self.rng.random()
        if draw < 0.3:
            return self._changed(parent, 1.0)
        if draw < 0.5:
            other = self.rng.choice(parents)
            return {
                name: self.rng.choice((parent, other)).get(name, parent[name]) for name in parent
            }
        return self._changed(parent, 1.5 / len(parent))

    def _changed(self, values: Values, chance: float) -> Values:
        """Return a valid candidate like another one, each decision drawn anew with a chance."""
        found: Values = {}
        for name, choice in self._choices.items():
            value = values.get(name, choice.default)
            if value not in choice.options:
                value = choice.default
            found[name] = self.rng.choice(choice.options) if self.rng.random() < chance else value
        return found
