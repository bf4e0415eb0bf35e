"""A cache of `huggingface_hub` with a model in it, as a download leaves it."""

from __future__ import annotations

import hashlib
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(cache: Path, repository: str, files: Path, commit: str = COMMIT) -> None:
    """Put the files of a folder into the cache as the branch main of `repository`."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    for file in files.iterdir():
        content = file.read_bytes()
        # Large files are named by SHA-256, small ones as git names a blob.
        if file.suffix in (".safetensors", ".gguf"):
            name = hashlib.sha256(content).hexdigest()
        else:
            name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (root / "blobs" / name).write_bytes(content)
        (snapshot / file.name).symlink_to(Path("../../blobs") / name)
