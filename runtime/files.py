"""Files that survive anything: written whole or not at all, one writer to a folder."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..targets import FabricError

_READ_BYTES = 1 << 20
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FileError(FabricError):
    """A file could not be written or read."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is, at any moment, the whole old one or the whole new one.

    The bytes go to a hidden file beside `path`, reach the disk (fsync), and take the name by one
    rename; then the folder itself is synced, so that the rename also survives a power cut. The
    hidden file's name is fixed: one left by a killed process is overwritten, they never add up.

    Parameters
    ----------
    path : Path
        The file to make or replace. Its folder is made where it is missing.

    Yields
    ------
    IO[bytes]
        The file to write to.

    Raises
    ------
    FileError
        Where the disk is full or the folder cannot be written; `path` is then untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` reach the disk; does nothing where the system has no such call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> FileError:
    """Say in one sentence why `path` could not be written, and what to do."""
    reason = error.strerror or str(error)
    cause = f"{path} could not be written: {reason[:1].lower()}{reason[1:]}."
    if error.errno in _NO_SPACE:
        return FileError(
            cause,
            "Free some space and run the command again: what was saved before is intact, and "
            "--resume goes on from there.",
        )
    return FileError(cause, "Check that the folder exists and that you may write there.")


def sha256(path: Path) -> str:
    """Hash a file.

    Returns
    -------
    str
        The SHA-256 of its bytes, 64 hexadecimal digits.

    Raises
    ------
    FileError
        Where it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise read_error(path, error) from error
    return digest.hexdigest()


def read_error(path: Path, error: OSError) -> FileError:
    """Say in one sentence why `path` could not be read, and what to do."""
    reason = error.strerror or str(error)
    return FileError(
        f"{path} could not be read: {reason[:1].lower()}{reason[1:]}.",
        "Check the path, and that you may read it.",
    )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process, so that two trainings never write the same files.

    The lock is the system's, on the folder itself: it leaves no file behind and ends with the
    process, however that ends. Where the system has no such lock (Windows), nothing is held.

    Raises
    ------
    FileError
        Where another process holds the folder, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileError(
                f"Another training is writing to {folder}.",
                "Wait for it, stop it, or choose another folder with --adapter.",
            ) from error
        except OSError as error:
            # Some network file systems know no locks; training there is still useful.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        os.close(descriptor)


def plain_json(value: Any) -> Any:
    """Turn NaN and infinity, which JSON lacks, into None, at any depth of lists and dicts."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    return value
