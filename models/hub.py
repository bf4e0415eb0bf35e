"""Models on the Hugging Face Hub: ``hf://owner/name@revision`` to a folder on this computer."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .checkpoint import CheckpointError
from .safetensors_files import INDEX_FILE, SINGLE_FILE

PREFIX = "hf://"

_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?(?:#(?P<file>.+))?")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What a model is read from; pictures, other formats and code of the repository stay where they are.
_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    SINGLE_FILE,
    INDEX_FILE,
    "model-*-of-*.safetensors",
)


def download(name: str) -> Path:
    """Fetch a model, or find it where it was fetched before.

    The files come into the cache of `huggingface_hub`, which goes on with a download that was cut
    short; then every file is compared with the hash that the hub gave for it.

    Parameters
    ----------
    name : str
        ``hf://owner/name``, then optionally ``@`` and a branch, tag or commit (by default ``main``)
        and ``#`` and the name of one .gguf file.

    Returns
    -------
    pathlib.Path
        The folder, or the .gguf file.

    Raises
    ------
    CheckpointError
        Where the name is malformed, `huggingface_hub` is missing, the hub cannot be reached and the
        model is not in the cache, or the hub has no such model, revision or file.
    """
    parts = _NAME.fullmatch(name.removeprefix(PREFIX))
    if parts is None:
        raise CheckpointError(
            f"{name!r} is not the name of a model on the Hugging Face Hub.",
            "Write hf://owner/name, hf://owner/name@revision or hf://owner/name@revision#file.gguf.",
        )
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(
            f"Fetching {name} needs the package huggingface_hub, which is not installed.",
            "Install it with: pip install 'bitfabric[hub]'",
        ) from error
    repository, revision, file = parts["name"], parts["revision"] or "main", parts["file"]
    try:
        if file:
            path = Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
            _verify(path, name)
            return path
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=list(_FILES)
            )
        )
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name} is not on this computer, and the Hugging Face Hub cannot be reached.",
            "Connect to the network and run the command again; what was fetched is kept.",
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"The Hugging Face Hub does not give {name}: {reason}.",
            "Check the name and the revision; for a gated model run `hf auth login` first.",
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{name} could not be fetched: {error}.",
            "Run the command again: it goes on where it stopped.",
        ) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{name} has no config.json, so it is no model in Hugging Face's format.",
            "Name its .gguf file after a #, as in hf://owner/name@main#model.gguf.",
        )
    for path in sorted(folder.iterdir()):
        if path.is_file():
            _verify(path, name)
    return folder


def _verify(path: Path, name: str) -> None:
    """Compare a file with its hash, which the cache has as the name of what a link leads to.

    Large files are named by their SHA-256, small ones by the SHA-1 that git gives a blob. Where
    the system has no links, the cache keeps no hash, and nothing is compared.
    """
    wanted = path.resolve().name
    if not path.is_symlink() or not _HASH.fullmatch(wanted):
        return
    if len(wanted) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != wanted:
        raise CheckpointError(
            f"The file {path.name} of {name} is not the one on the hub: its hash differs.",
            f"Delete {path.resolve()} and run the command again.",
        )
