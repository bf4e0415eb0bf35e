"""Learning rates rise, and fall as their names say."""

from __future__ import annotations

import math

import pytest
from bitfabric.runtime.schedule import SCHEDULERS, learning_rate_at, warmup_steps


def rates(scheduler: str, total: int, warmup: int) -> list[float]:
    return [
        learning_rate_at(step, total=total, peak=2.0, scheduler=scheduler, warmup=warmup)
        for step in range(1, total + 1)
    ]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_warm_up_rises_in_equal_parts_to_the_peak(scheduler: str) -> None:
    assert rates(scheduler, 20, 4)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_after_the_warm_up_each_follows_its_formula() -> None:
    progress = [index / 16 for index in range(16)]
    assert rates("constant", 20, 4)[4:] == [2.0] * 16
    assert rates("linear", 20, 4)[4:] == pytest.approx([2 * (1 - p) for p in progress])
    expected = [1 + math.cos(math.pi * p) for p in progress]
    assert rates("cosine", 20, 4)[4:] == pytest.approx(expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (3, 3), (100, 0)])
def test_every_step_learns(scheduler: str, total: int, warmup: int) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(scheduler, total, warmup))


def test_the_warm_up_is_a_part_of_the_steps() -> None:
    assert [warmup_steps(ratio, 200) for ratio in (0, 0.05, 1)] == [0, 10, 200]
