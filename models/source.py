"""From the name of a model, as a person types it, to its weights."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import Checkpoint, CheckpointError
from .huggingface import HuggingFaceCheckpoint
from .random_weights import SHAPES, open_random

NANO = "nano"


def open_model(name: str) -> Checkpoint:
    """Open a model; its weights are read, or generated, as they are asked for.

    Parameters
    ----------
    name : str
        ``nano`` (the model that comes with fabric), ``random:SIZE`` or ``random:SIZE:seed=N``
        (published shapes, see `random_weights.SHAPES`), or the path of a Hugging Face folder.

    Raises
    ------
    CheckpointError
        Where there is no such model, or its files cannot be used.
    FabricError
        For a random model of unknown size.
    """
    if name == NANO:
        return HuggingFaceCheckpoint(Path(__file__).parent / NANO, NANO)
    if name.startswith("random:"):
        return open_random(name)
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        there = "has no config.json" if folder.is_dir() else "is not a folder"
        raise CheckpointError(
            f"There is no model {name!r}: it {there}.",
            f"Give {NANO}, a random:SIZE with one of {', '.join(SHAPES)}, or the path of a "
            "downloaded Hugging Face model.",
        )
    return HuggingFaceCheckpoint(folder)
