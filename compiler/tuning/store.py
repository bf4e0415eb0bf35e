"""Files of JSON lines that several processes append to and that survive being killed."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...targets import FabricError


def data_folder() -> Path:
    """Return the folder for a user's own data: ``$BITFABRIC_DATA``, or that of the platform."""
    named = os.environ.get("BITFABRIC_DATA")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "bitfabric"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "bitfabric"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "bitfabric"


def file_name(target: str) -> str:
    """Return the name of a target's file: ``vulkan:auto`` is no name for one everywhere."""
    return target.replace(":", "-") + ".jsonl"


def to_line(value: dict[str, Any]) -> bytes:
    """Return an object as a line, the same bytes each time."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def append(path: Path, value: dict[str, Any]) -> None:
    """Add a line to a file, whole, also where other processes add theirs at the same moment.

    Raises
    ------
    FabricError
        If the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            _lock(file.fileno())
            end = file.seek(0, os.SEEK_END)
            if end:
                # A process that was killed while it wrote has left a line without its end.
                file.seek(end - 1)
                whole = file.read(1) == b"\n"
            line = to_line(value) if not end or whole else b"\n" + to_line(value)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _refusal(path, error) from error


def write(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Replace a file, which at any moment is the whole old one or the whole new one.

    Raises
    ------
    FabricError
        If the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for value in values:
                    file.write(to_line(value))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise _refusal(path, error) from error


def read(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[int]]:
    """Return the objects of a file with the numbers of their lines, and the lines that are none.

    Raises
    ------
    FabricError
        If the file is there and can't be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise FabricError(
            f"{path} could not be read: {error.strerror or error}.",
            "Check the path, and that you may read it.",
        ) from error
    found: list[tuple[int, dict[str, Any]]] = []
    damaged: list[int] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append((number, value))
        else:
            damaged.append(number)
    return found, damaged


def _lock(descriptor: int) -> None:
    """Hold a file until it is closed; where the system has no such lock, nothing is held."""
    if sys.platform == "win32":
        return
    import fcntl

    # Some network file systems know no locks.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _refusal(path: Path, error: OSError) -> FabricError:
    return FabricError(
        f"{path} could not be written: {error.strerror or error}.",
        "Free some space, or name another folder with BITFABRIC_DATA.",
    )
