"""Compiled modules kept between compilations: another checkpoint of the same shape costs nothing.

The key is everything that decides the code: the shape of the model, the options, the target, the
versions of the tools, and the sources of this package. The folder is ``$BITFABRIC_CACHE``, or
``bitfabric`` in the user's cache folder; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..models.config import ModelConfig
from ..targets import Target, host_triple
from ..targets.manifest import sha256
from .options import CompileOptions

ENTRIES = 32
"""Modules kept; the least recently used go first. One takes about 2 MiB."""
SOURCES = ("targets", "models", "schedules", "compiler")
MODULE, RECORD = "module.so", "record.json"
AT_RUN_TIME = (
    "debug_dump",
    "memory_budget",
    "resident_layers",
    "gradients",
    "host_ends",
    "host_inputs",
)
"""Options that leave the code as it is."""
KEY_LENGTH = 64
"""Digits of a key."""


def cache_folder() -> Path:
    """Return the folder of the cache; it need not exist."""
    named = os.environ.get("BITFABRIC_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bitfabric"


def key_of(config: ModelConfig, target: Target, options: CompileOptions, tuning: str = "") -> str:
    """Return the key of a module: hexadecimal SHA-256; `tuning` is the digest of the records."""
    decides = {k: v for k, v in asdict(options).items() if k not in AT_RUN_TIME}
    settings = {
        "config": config.to_dict(),
        "options": decides,
        "tuning": tuning,
        "target": [
            target.name,
            target.options,
            sorted(target.features),
            target.vector_bytes,
            asdict(target.limits) if target.limits else None,
            [asdict(unit) for unit in target.matrices],
            host_triple(target),
        ],
        "tools": [version("apache-tvm"), version("apache-tvm-ffi")],
    }
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    root = Path(__file__).parent.parent
    for folder in SOURCES:
        for source in sorted((root / folder).rglob("*.py")):
            found.update(source.relative_to(root).as_posix().encode())
            found.update(source.read_bytes())
    return found.hexdigest()


def recall(key: str, module: Path) -> dict[str, Any] | None:
    """Copy a kept module to `module` and return its record; None where there is none or damage."""
    entry = cache_folder() / key
    try:
        record = json.loads((entry / RECORD).read_text(encoding="utf-8"))
        shutil.copyfile(entry / MODULE, module)
        if sha256(module) != record.pop("sha256"):
            raise ValueError("damaged")
        module.chmod(0o755)
        os.utime(entry)
    except (OSError, ValueError, KeyError):
        module.unlink(missing_ok=True)
        return None
    return record


def keep(key: str, module: Path, record: dict[str, Any]) -> None:
    """Keep a module under a key, whole or not at all; a cache that can't be written is no error."""
    folder = cache_folder()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".new.", dir=folder))
        try:
            shutil.copyfile(module, work / MODULE)
            text = json.dumps({**record, "sha256": sha256(module)})
            (work / RECORD).write_text(text, encoding="utf-8")
            work.rename(folder / key)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        entries = sorted(
            # Others keep things here too; a module's folder is named by its key.
            (entry for entry in folder.iterdir() if len(entry.name) == KEY_LENGTH),
            key=lambda entry: entry.stat().st_mtime,
        )
        for entry in entries[:-ENTRIES]:
            shutil.rmtree(entry, ignore_errors=True)
