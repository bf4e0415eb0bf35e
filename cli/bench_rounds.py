"""Rounds of a comparison: every side in turn, the machine's own rates in between, and medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..targets import FabricError
from .bench_energy import Meter
from .bench_sides import Side

Told = Callable[[str, float, float], None]
"""Is given what is measured, how much of all (0 to 1) is done, and the seconds that are left."""


@dataclass
class Measured:
    """What the rounds of a side gave.

    Attributes
    ----------
    name : str
        The side's.
    rounds : list of dict
        What it said of each.
    joules : list of float or None
        What the machine used in each.
    peak_memory_mib : float or None
        The most memory, MiB, as it said of the round that does not count: the sides after it have
        not begun then. A driver tells what all processes have of a device, not what each has. None
        where the side does not say.
    """

    name: str
    rounds: list[dict[str, Any]] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)
    peak_memory_mib: float | None = None

    @property
    def speeds(self) -> list[float]:
        """Tokens a second of each round."""
        return [float(found["tokens_per_s"]) for found in self.rounds]

    @property
    def joules_per_token(self) -> float | None:
        """Energy of a token, the median; None where it is not known for every round."""
        found = [
            used / said["tokens"]
            for used, said in zip(self.joules, self.rounds, strict=True)
            if used is not None and said.get("tokens")
        ]
        return statistics.median(found) if len(found) == len(self.rounds) else None

    def to_json(self) -> dict[str, Any]:
        """Return the medians, with the quartiles of the speed."""
        return {
            "name": self.name,
            "tokens_per_s": statistics.median(self.speeds),
            "spread": list(quartiles(self.speeds)),
            "peak_memory_mib": self.peak_memory_mib,
            "joules_per_token": self.joules_per_token,
        }


class Calibration:
    """The machine's rates, measured between the rounds, or why they are not.

    Parameters
    ----------
    side : Side or None
        Measures them.
    reason : str or None
        Why there is none.

    Attributes
    ----------
    rounds : list of dict
        The rates of each round.
    """

    def __init__(self, side: Side | None, reason: str | None = None) -> None:
        self._side, self.reason = side, reason
        self.rounds: list[dict[str, float]] = []

    def measure(self, counts: bool) -> None:
        """Measure once; where that fails, no more."""
        if self._side is None:
            return
        try:
            rates = self._side.round()["rates"]
        except FabricError as error:
            self._side, self.reason, self.rounds = None, error.cause, []
            return
        if counts:
            self.rounds.append(rates)

    def to_json(self) -> dict[str, Any] | None:
        """Return the median of each rate, with its quartiles; None where there are none."""
        if not self.rounds:
            return None
        found: dict[str, Any] = {}
        for name in self.rounds[0]:
            values = [rates[name] for rates in self.rounds]
            found[name] = statistics.median(values)
            found[f"{name}_spread"] = list(quartiles(values))
        return found


def take_turns(
    sides: Sequence[Side], calibration: Calibration, meter: Meter, rounds: int, told: Told
) -> list[Measured]:
    """Measure every side in every round, after one round that does not count.

    Raises
    ------
    FabricError
        If a side fails.
    """
    found = [Measured(side.name) for side in sides]
    steps, done, seconds = len(sides) * (rounds + 1), 0, 0.0
    for number in range(rounds + 1):
        begin = time.monotonic()
        for side, measured in zip(sides, found, strict=True):
            phase = f"{side.name}, round {number} of {rounds}" if number else f"warm up {side.name}"
            told(phase, done / steps, (rounds + 1 - number) * seconds)
            before = meter.joules()
            said = side.round()
            after = meter.joules()
            done += 1
            if not number:
                measured.peak_memory_mib = said.get("peak_memory_mib")
            else:
                measured.rounds.append(said)
                used = None if before is None or after is None else after - before
                measured.joules.append(used)
        calibration.measure(counts=number > 0)
        seconds = time.monotonic() - begin
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the median of the quotients, round by round, and their quartiles."""
    found = [a / b for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(found), quartiles(found)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the values a quarter of the way from either end."""
    ordered = sorted(values)
    quarter = (len(ordered) - 1) // 4
    return ordered[quarter], ordered[-1 - quarter]
