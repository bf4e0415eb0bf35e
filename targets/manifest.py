"""The bundle's manifest, as its writer and its reader both know it: version, name and hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SCHEMA = 4
"""Version of the manifest; a runtime refuses a newer one."""
MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's canonical JSON, without its own ``digest``."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
