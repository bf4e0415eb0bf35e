"""A folder that is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..targets import FabricError


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `output`, on disk, when the block ends well.

    Raises
    ------
    FabricError
        Where `output` exists, or the disk is full.
    """
    require_new(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            yield work
            for path in work.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            os.chmod(work, 0o755)
            work.rename(output)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise FabricError(
            f"The folder {output} could not be written: {error.strerror or error}.",
            "Make room on the disk or name another output; nothing was left behind.",
        ) from error


def require_new(output: Path) -> None:
    """Refuse to write where something is.

    Raises
    ------
    FabricError
    """
    if output.exists():
        raise FabricError(f"{output} exists.", "Name another output, or remove it first.")
