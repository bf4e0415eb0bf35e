"""The bundles that a device holds: sent once, checked by their hashes, kept under their digest."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ...targets import FabricError
from ...targets.manifest import MANIFEST, SCHEMA, digest
from ..bundle import Bundle, BundleError, check_target, open_bundle
from ..device import chosen_device
from ..files import sync_folder, write_error


def data_folder() -> Path:
    """Return where a device keeps bundles unless it is told otherwise."""
    named, base = os.environ.get("BITFABRIC_CACHE"), os.environ.get("XDG_CACHE_HOME")
    cache = (Path(base) if base else Path.home() / ".cache") / "bitfabric"
    return (Path(named) if named else cache) / "remote"


class BundleStore:
    """Bundles in a folder, one of which is being received or used.

    A bundle arrives in a folder whose name ends in ``.partial`` and gets its own name once every
    hash is right, so that what has its own name is whole. What has arrived of a partial one is kept
    for the next attempt.

    Parameters
    ----------
    folder : pathlib.Path

    Attributes
    ----------
    bundle : Bundle or None
        The one that is there, whole, for the engines.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest: dict[str, Any] = {}
        self._lock: int | None = None
        self.bundle: Bundle | None = None

    def offer(self, manifest: dict[str, Any]) -> dict[str, int] | None:
        """Take a bundle's manifest; give the bytes that are there of each file, None for all.

        Raises
        ------
        FabricError
            If this device can't run it; nothing needs to be sent then.
        """
        name = str(manifest.get("digest"))
        if manifest.get("schema") != SCHEMA:
            raise FabricError(
                f"the bundle is of schema {manifest.get('schema')}; this device knows {SCHEMA}.",
                "Install the same version of bitfabric here and on the device.",
            )
        if not re.fullmatch("[0-9a-f]{64}", name) or digest(manifest) != name:
            raise FabricError("the bundle's manifest did not arrive whole.", "Try again.")
        self._refuse_foreign(manifest)
        self._manifest, self.bundle = manifest, None
        self._folder.mkdir(parents=True, exist_ok=True)
        self._hold(self._folder / f"{name}.lock")
        if self._whole.is_dir():
            try:
                self.bundle = open_bundle(self._whole)
                self._release()
                return None
            except BundleError:
                shutil.rmtree(self._whole)
        return {
            file: min(self._size(file), entry["bytes"]) for file, entry in manifest["files"].items()
        }

    def named(self, path: str, name: str) -> None:
        """Take a bundle that is on the device already.

        Raises
        ------
        FabricError
            If there is none, or it is another than the one with the digest `name`.
        """
        self.bundle = open_bundle(Path(path).expanduser())
        self._refuse_foreign(self.bundle.manifest)
        if self.bundle.manifest["digest"] != name:
            raise FabricError(
                f"{path} is another bundle than the one on the computer.",
                "Copy it there anew, or leave out bundle= to have it sent.",
            )

    def write(self, file: str, offset: int, piece: np.ndarray) -> None:
        """Write a piece, uint8 [n], of a file at an offset that has been reached.

        Raises
        ------
        FabricError
            If the disk is full.
        """
        if file not in self._manifest["files"]:
            raise FabricError(f"{file} is no file of the bundle.", "Try again.")
        path = self._inside(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("r+b" if offset else "wb") as target:
                target.truncate(offset)
                target.seek(offset)
                target.write(piece.tobytes())
        except OSError as error:
            raise write_error(path, error) from error

    def finish(self) -> None:
        """Check everything that was written; the bundle is then there.

        Raises
        ------
        FabricError
            If a hash is wrong; the bundle has to be sent anew.
        """
        self._partial.mkdir(parents=True, exist_ok=True)
        for file, entry in self._manifest["files"].items():
            if not entry["bytes"]:
                self._inside(file).parent.mkdir(parents=True, exist_ok=True)
                self._inside(file).touch()
        (self._partial / MANIFEST).write_text(json.dumps(self._manifest), encoding="utf-8")
        try:
            open_bundle(self._partial)
        except BundleError as error:
            shutil.rmtree(self._partial)
            raise FabricError(
                f"the bundle did not arrive whole: {error.cause}", "Try again: it is sent anew."
            ) from error
        os.replace(self._partial, self._whole)
        sync_folder(self._folder)
        self.bundle = Bundle(self._whole, self._manifest)
        self._release()

    @property
    def _whole(self) -> Path:
        return self._folder / self._manifest["digest"]

    @property
    def _partial(self) -> Path:
        return self._folder / f"{self._manifest['digest']}.partial"

    def _inside(self, file: str) -> Path:
        path = (self._partial / file).resolve()
        if not path.is_relative_to(self._partial.resolve()):
            raise FabricError(f"{file} lies outside the bundle.", "Compile the bundle again.")
        return path

    def _size(self, file: str) -> int:
        path = self._inside(file)
        return path.stat().st_size if path.is_file() else 0

    def _refuse_foreign(self, manifest: dict[str, Any]) -> None:
        """Refuse a bundle that this processor, or the device beside it, can't run."""
        name = Path(str(manifest["model"]["name"]))
        check_target(name, manifest)
        if manifest["target"]["device"] != "cpu":
            chosen_device(Bundle(name, manifest))

    def _hold(self, path: Path) -> None:
        """Wait until nobody else on this device receives the same bundle."""
        self._release()
        if sys.platform == "win32":
            return
        import fcntl

        self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None
