"""What a compilation makes of the records: decisions for each kernel, and an account of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from tvm import tirx

from ...schedules.decisions import Value
from ...targets import Target
from ..amounts import Amounts, amounts_of
from .records import Device, Record, best, load, shipped_file, user_file
from .signature import distance, signature_of

NEAR = 4.0
"""Doublings, over all sizes together, within which another shape's decisions are taken over."""
TUNED, NEAR_BY, DEFAULT = "tuned", "near", "default"


class Tuning:
    """The records that hold for a target.

    Parameters
    ----------
    target : Target
        The target.
    records : iterable of Record
        Records of any target; only those with its name and features and of this TVM count.
    device : Device, optional
        What it will run on, where that is known: its own records come before those of others.
    notes : sequence of str
        What was wrong with the files they came from.
    """

    def __init__(
        self,
        target: Target,
        records: Iterable[Record] = (),
        device: Device | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.target, self.device, self.notes = target, device, list(notes)
        features, tvm = tuple(sorted(target.features)), version("apache-tvm")
        self.records = [
            record
            for record in best(records)
            if (record.target, record.features, record.tvm) == (target.name, features, tvm)
        ]
        self.used: dict[str, dict[str, Any]] = {}
        self.amounts: dict[str, Amounts | None] = {}

    @classmethod
    def of(cls, target: Target, device: Device | None = None) -> Tuning:
        """Return a target's tuning by the user's own records and those of the package."""
        own, notes = load(user_file(target.name))
        shipped, more = load(shipped_file(target.name))
        return cls(target, [*shipped, *own], device, [*notes, *more])

    @property
    def digest(self) -> str:
        """A hash of everything that :meth:`decisions` may answer."""
        found = [record.to_json()["hash"] for record in self.records]
        device = None if self.device is None else self.device.title
        return hashlib.sha256(json.dumps([found, device]).encode()).hexdigest()

    def decisions(self, function: tirx.PrimFunc, name: str = "") -> dict[str, Value]:
        """Return the decisions for a kernel, none where nothing is known, and note it as used.

        What it reads and multiplies is noted by its name in the module.
        """
        if name:
            self.amounts[name] = amounts_of(function)
        signature = signature_of(function)
        exact = [record for record in self.records if record.key == signature.key]
        found, how = self._preferred(exact), TUNED
        if found is None:
            apart = [(distance(record.kernel, signature), record) for record in self.records]
            within = [(d, record) for d, record in apart if d is not None and d <= NEAR]
            least = min((d for d, _ in within), default=0.0)
            found, how = self._preferred([r for d, r in within if d == least]), NEAR_BY
        entry: dict[str, Any] = {"kernel": signature.title, "from": DEFAULT}
        if found is not None:
            entry |= {"from": how, "record": found.to_json()}
        self.used[signature.key] = entry
        return {} if found is None else found.decisions

    def _preferred(self, records: list[Record]) -> Record | None:
        """Return the record of this very device, else the one that gained most."""
        return min(records, key=lambda r: (r.device != self.device, r.ratio), default=None)

    def account(self) -> dict[str, Any]:
        """Return what ``tuning.json`` says.

        For each kernel what its schedule rests on, and for each function of the module what it
        reads, writes and multiplies at least.
        """
        return {
            "target": self.target.name,
            "kernels": dict(sorted(self.used.items())),
            "amounts": {name: self.amounts[name] for name in sorted(self.amounts)},
        }


def summary(account: dict[str, Any]) -> dict[str, int]:
    """Return how many kernels of an account were tuned, near and default."""
    ways = [entry["from"] for entry in account["kernels"].values()]
    return {way: ways.count(way) for way in (TUNED, NEAR_BY, DEFAULT)}


def devices_of(account: dict[str, Any]) -> list[str]:
    """Return the devices that the records of an account were measured on."""
    found = [
        entry["record"]["device"] for entry in account["kernels"].values() if "record" in entry
    ]
    return sorted({Device(**device).title for device in found})
