"""Files are whole or untouched, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bitfabric.runtime.files import FileError, atomic_write, only_writer, plain_json, sha256


@contextmanager
def small_disk(most: int) -> Iterator[None]:
    """Let this process write files of `most` bytes: what a full disk does to a write.

    Only around the write: pytest's own output may go to a file as well.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for content in (b"old" * 100, b"new"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with small_disk(10_000), pytest.raises(FileError) as caught, atomic_write(path) as file:
        file.write(b"x" * 10_001)
    assert str(path) in caught.value.cause
    assert "Free some space" in caught.value.remedy
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_has_one_writer_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from bitfabric.runtime.files import only_writer\n"
        f"with only_writer(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(FileError, match="Another training"), only_writer(tmp_path):
        pass
    process.kill()
    process.communicate()
    with only_writer(tmp_path):
        assert os.listdir(tmp_path) == []


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    with pytest.raises(FileError, match="could not be read"):
        sha256(tmp_path / "missing")


def test_json_has_no_nan() -> None:
    values = {"a": float("nan"), "b": [float("-inf"), 1.5], "c": "nan"}
    assert plain_json(values) == {"a": None, "b": [None, 1.5], "c": "nan"}
