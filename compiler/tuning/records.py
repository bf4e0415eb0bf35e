"""Records: the decisions that were fastest for a kernel on a device, and where they are kept.

A record is a JSON object that names its kernel and shapes, the decisions, the times it rests on,
and what it was measured on; its own hash says that nobody changed it. Those that come with the
package lie in ``schedules/records/``, a user's own in their data folder, a file for each target.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ... import schedules
from ...schedules.decisions import Value
from ...targets import FabricError, Target
from .signature import Signature
from .store import data_folder, file_name, read

SCHEMA = 1
_KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Device:
    """What a record was measured on.

    Attributes
    ----------
    name : str
        What the processor or the driver calls it.
    detail : str
        Its version: the driver's, or the processor's family, model and stepping.
    threads : int
        Of a processor; 0 of a device.
    """

    name: str
    detail: str = ""
    threads: int = 0

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.name}, {self.threads} threads" if self.threads else self.name


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes
    ----------
    kernel : Signature
        The kernel with its shapes.
    decisions : dict
        What its rule is told; empty where nothing was faster than its default.
    seconds, default_seconds : float
        Time of a call by these decisions, and by the rule's default in the same run.
    trials : int
        Candidates that were tried.
    target : str
        The target's name.
    features : tuple of str
        The target's features, sorted.
    device : Device
        What it was measured on.
    tvm : str
        The version of the compiler.
    """

    kernel: Signature
    decisions: dict[str, Value]
    seconds: float
    default_seconds: float
    trials: int
    target: str
    features: tuple[str, ...]
    device: Device
    tvm: str = field(default_factory=lambda: version("apache-tvm"))

    @property
    def key(self) -> str:
        """The key of the kernel."""
        return self.kernel.key

    @property
    def ratio(self) -> float:
        """Its time by the default's."""
        return self.seconds / self.default_seconds

    @property
    def place(self) -> tuple[str, str, Device, str]:
        """What only one record is needed for."""
        return (self.target, self.key, self.device, self.tvm)

    def to_json(self) -> dict[str, Any]:
        """Return it as it is stored."""
        found = {
            "schema": SCHEMA,
            "key": self.key,
            **self.kernel.to_json(),
            "decisions": {name: _stored(value) for name, value in self.decisions.items()},
            "seconds": self.seconds,
            "default_seconds": self.default_seconds,
            "trials": self.trials,
            "target": self.target,
            "features": list(self.features),
            "device": asdict(self.device),
            "tvm": self.tvm,
        }
        return {**found, "hash": _hash(found)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Record:
        """Return a stored record.

        Raises
        ------
        ValueError
            With a few words, where it is damaged or of another version.
        """
        try:
            if found["schema"] != SCHEMA:
                raise ValueError(f"it is of version {found['schema']}")
            rest = {name: value for name, value in found.items() if name != "hash"}
            if found["hash"] != _hash(rest):
                raise ValueError("its hash is not that of its content")
            kernel = Signature(found["kernel"], found["parameters"], found["buffers"])
            if found["key"] != kernel.key:
                raise ValueError("its key is not that of its kernel")
            times = float(found["seconds"]), float(found["default_seconds"])
            if not all(0.0 < t < float("inf") for t in times):
                raise ValueError("its times are none")
            return cls(
                kernel=kernel,
                decisions={str(n): _value(v) for n, v in found["decisions"].items()},
                seconds=times[0],
                default_seconds=times[1],
                trials=int(found["trials"]),
                target=str(found["target"]),
                features=tuple(str(name) for name in found["features"]),
                device=Device(**found["device"]),
                tvm=str(found["tvm"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{error.args[0] if error.args else 'something'} is wrong") from error


def _hash(found: dict[str, Any]) -> str:
    text = json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _stored(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _value(value: Any) -> Value:
    if isinstance(value, list):
        return tuple(int(item) for item in value)
    if isinstance(value, (int, str)):
        return value
    raise ValueError(f"{value!r} is no decision")


def user_file(target: str) -> Path:
    """Return the file of a user's own records for a target."""
    return data_folder() / "records" / file_name(target)


def shipped_file(target: str) -> Path:
    """Return the file of the records that come with the package."""
    return Path(str(schedules.__file__)).parent / "records" / file_name(target)


def load(path: Path) -> tuple[list[Record], list[str]]:
    """Return the records of a file, and a sentence for each line that is none.

    Raises
    ------
    FabricError
        If the file is there and can't be read.
    """
    lines, damaged = read(path)
    notes = [f"{path}, line {number}: it is damaged and was skipped." for number in damaged]
    found = []
    for number, line in lines:
        try:
            found.append(Record.from_json(line))
        except ValueError as error:
            notes.append(f"{path}, line {number}: {error}; it was skipped.")
    return found, notes


def everything() -> list[Record]:
    """Return the best records of all targets, those that come with the package and a user's own."""
    folders = (shipped_file("").parent, user_file("").parent)
    files = [path for folder in folders for path in sorted(folder.glob("*.jsonl"))]
    return best(record for path in files for record in load(path)[0])


def load_strictly(path: Path) -> list[Record]:
    """Return the records of a file that somebody hands on.

    Raises
    ------
    FabricError
        If it is not there, or a line of it is no record.
    """
    if not path.is_file():
        raise FabricError(f"There is no file {path}.", "Write one with: fabric records export")
    found, notes = load(path)
    if notes:
        raise FabricError(
            notes[0].replace(" and was skipped", "").replace("; it was skipped", ""),
            "Have the file exported again, or delete that line.",
        )
    return found


def best(records: Iterable[Record]) -> list[Record]:
    """Return for each kernel, device and version the record that gained most, in a fixed order."""
    kept: dict[tuple[str, str, Device, str], Record] = {}
    for record in records:
        other = kept.get(record.place)
        if other is None or record.ratio <= other.ratio:
            kept[record.place] = record
    return sorted(kept.values(), key=lambda r: (r.target, r.kernel.title, *map(str, r.place)))


def record_of(
    target: Target,
    device: Device,
    kernel: Signature,
    decisions: dict[str, Value],
    times: tuple[float, float],
    trials: int,
) -> Record:
    """Return a record of what was measured here and now; ``times`` are its and the default's."""
    features = tuple(sorted(target.features))
    return Record(kernel, decisions, *times, trials, target.name, features, device)
