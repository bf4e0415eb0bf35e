"""What a device was given to do, launch by launch, and how that differs from the plan.

`launch_plan.py` has what must be launched; here is what was, as the library in ROCm's place saw it.
"""

from __future__ import annotations

import ctypes
import json
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

HANDLE, FLOAT = 3, 2
"""Codes of a kernel's argument types, as TVM writes them."""


def form_of(code: int, bits: int) -> str:
    """Return the form of an argument, as `struct` names it."""
    if code == HANDLE:
        return "Q"
    return {(FLOAT, 32): "f", (FLOAT, 64): "d"}.get((code, bits), {8: "b", 32: "i", 64: "q"}[bits])


def packed(types: list[list[int]], values: list[Any]) -> bytes:
    """Return arguments as a kernel finds them: each at a multiple of its size."""
    data = b""
    for (code, bits), value in zip(types, values, strict=True):
        data += bytes(-len(data) % (bits // 8)) + struct.pack("<" + form_of(code, bits), value)
    return data


def digest(array: np.ndarray, known: np.ndarray) -> str:
    """Return the name that bytes have, given which of them are known; others count for nothing."""
    content = np.where(known, array, np.uint8(0)).tobytes()
    mask = b"" if known.all() else np.packbits(~known).tobytes()
    return sha256(content + b"/" + mask).hexdigest()[:32]


def contents(folder: Path, name: str, size: int) -> np.ndarray:
    """Return which of a buffer's bytes are known, by the name of its contents in a plan."""
    data = np.frombuffer((folder / name).read_bytes(), np.uint8)
    if data.size == size:
        return np.ones(size, bool)
    return ~np.unpackbits(data[size:], count=size).astype(bool)


class Tracer:
    """Writes down launches: their arguments, and the digests of what lies where these lead.

    Parameters
    ----------
    plan : Path
        The folder of the plan, which says how many bytes an argument is of, and which are known.
    """

    def __init__(self, plan: Path) -> None:
        lines = (plan / "launches.jsonl").read_text().splitlines()
        self._folder, self._planned = plan, [json.loads(line) for line in lines]
        self._file = (plan / "trace.jsonl").open("w")
        self._count = 0

    def before(
        self,
        kernel: str,
        extents: dict[str, int],
        types: list[tuple[int, int]],
        data: bytes,
        arguments: list[tuple[bool, Any]],
        rooms: dict[int, int],
    ) -> None:
        """Write down a launch that is about to run.

        Parameters
        ----------
        kernel, extents
            What is launched.
        types, data, arguments
            Its argument types, the bytes that it was given, and what they say: whether an address
            stands there, and the value.
        rooms : dict
            By address, the bytes from there to the end of its allocation.
        """
        self._launch = {
            "kernel": kernel, "extents": extents, "types": types, "packed": data.hex(),
            "arguments": [
                {"place": value, "room": rooms[value]} if address else value
                for address, value in arguments
            ],
        }  # fmt: skip
        self._look("before")

    def after(self) -> None:
        """Complete what was written down, when the launch has run."""
        self._look("after")
        self._file.write(json.dumps(self._launch) + "\n")
        self._file.flush()
        self._count += 1

    def _look(self, when: str) -> None:
        """Note the digest of each buffer, as far as the plan says what it is of."""
        planned = self._planned[self._count] if self._count < len(self._planned) else None
        if planned is None or len(planned["arguments"]) != len(self._launch["arguments"]):
            return
        for ours, theirs in zip(self._launch["arguments"], planned["arguments"], strict=True):
            if isinstance(ours, dict) and isinstance(theirs, dict):
                size = theirs["size"]
                if size > ours["room"]:
                    continue
                memory = (ctypes.c_char * size).from_address(ours["place"])
                known = contents(self._folder, theirs[when], size)
                ours[when] = digest(np.frombuffer(memory, np.uint8), known)


def read_trace(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the launches of a plan, and those that ran."""
    files = (folder / name for name in ("launches.jsonl", "trace.jsonl"))
    plan, trace = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    return plan, trace


def differences(plan: list[dict[str, Any]], trace: list[dict[str, Any]]) -> list[str]:
    """Return what of a trace is not as its plan has it, a sentence each; nothing is well."""
    found = []
    if len(plan) != len(trace):
        found.append(f"{len(trace)} launches where {len(plan)} are planned")
    for index, (right, launch) in enumerate(zip(plan, trace, strict=False)):
        about = f"launch {index}, {launch['kernel']}: "
        found += [about + each for each in _of_launch(right, launch)]
    return found


def _of_launch(right: dict[str, Any], launch: dict[str, Any]) -> list[str]:
    """Return what of one launch is not as planned."""
    found = [
        f"its {part} is {launch[part]}, not {right[part]}"
        for part in ("kernel", "extents")
        if launch[part] != right[part]
    ]
    ours, theirs = launch["arguments"], right["arguments"]
    if [isinstance(a, dict) for a in ours] != [isinstance(a, dict) for a in theirs]:
        return [*found, f"it takes {len(ours)} arguments of its kinds, not {len(theirs)} of others"]
    values = [a["place"] if isinstance(a, dict) else b for a, b in zip(ours, theirs, strict=True)]
    if packed(launch["types"], values).hex() != launch["packed"]:
        found.append(f"its arguments are {launch['packed']}, not those of {values}")
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if isinstance(a, dict)]
    for index, (buffer, planned) in enumerate(pairs):
        if buffer["room"] < planned["size"]:
            found.append(f"buffer {index} has {buffer['room']} bytes, not {planned['size']}")
        for when in ("before", "after"):
            if buffer.get(when) != planned[when]:
                found.append(f"buffer {index} has other bytes {when} it")
        for other, (second, alike) in enumerate(pairs[:index]):
            if _meet(buffer["place"], planned["size"], second["place"], alike["size"]) != _meet(
                planned["place"], planned["size"], alike["place"], alike["size"]
            ):
                found.append(f"buffers {other} and {index} share memory, or do not, unlike planned")
    return found


def _meet(first: int, size: int, second: int, other: int) -> bool:
    """Return whether two ranges of memory have a byte in common."""
    return first < second + other and second < first + size
